"""The tables of GPU support follow from one file, and claim no more than other files prove."""

from __future__ import annotations

import csv
import importlib.util
import re
from pathlib import Path

import pytest

import setup
from sadkernels import backends

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def support():
    """The script that writes the tables."""
    spec = importlib.util.spec_from_file_location("_gpu_support", ROOT / "docs" / "_gpu_support.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_have_the_tables_of_the_file(support):
    tables = support.tables()
    assert set(tables) == {ROOT / "README.md", ROOT / "docs" / "gpu_support.md"}
    for path, table in tables.items():
        assert f"-->\n\n{table}\n\n<!--" in path.read_text(), f"{path.name} is old: run `python docs/_gpu_support.py`"
        assert support.replaced(path.read_text(), table) == path.read_text()


def test_the_script_writes_changed_tables(support, monkeypatch, tmp_path):
    """A run on a card appears in both pages, with its architecture in the README."""
    pages = {name: tmp_path / name for name in ("README.md", "docs/gpu_support.md", "benchmarks/results/gpu_support.csv")}
    for name, path in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((ROOT / name).read_text())
    source = pages["benchmarks/results/gpu_support.csv"]
    line = next(line for line in source.read_text().splitlines() if line.startswith("cuda,sm_90"))
    source.write_text(source.read_text().replace(line, f"{line.rstrip(',')},2027-01-05 H200,"))
    monkeypatch.setattr(support, "ROOT", tmp_path)
    monkeypatch.setattr(support, "SOURCE", source)
    support.main()
    assert "2027-01-05 H200: sm_90 |" in pages["README.md"].read_text()
    assert "| 2027-01-05 H200 | no |" in pages["docs/gpu_support.md"].read_text()
    pages["README.md"].write_text("no marks")
    with pytest.raises(ValueError, match="one pair of marks"):
        support.main()


def test_every_gpu_backend_has_every_default_architecture(support):
    rows = support.read()
    pairs = [(row["backend"], row["architecture"]) for row in rows]
    built = [f"sm_{version.replace('.', '').removesuffix('+PTX')}" for version in setup.CUDA_ARCHITECTURES.split()]
    assert pairs == [(backend, architecture) for backend in ("triton", "cuda") for architecture in built]
    assert {"triton", "cuda"} <= set(backends.PACKAGES)
    assert all(row["cards"] and None not in row.values() for row in rows)


def test_what_is_called_compiled_has_been_compiled(support):
    for row in support.read():
        with open(RESULTS / f"{row['backend']}_offline.csv", newline="") as stream:
            compiled = {one["architecture"] for one in csv.DictReader(stream)}
        assert not row["compiled"] or row["architecture"] in compiled, row


def test_a_run_has_a_date_and_a_card(support):
    for row in support.read():
        for state in ("run_on_a_card", "tuned"):
            assert re.fullmatch(r"(\d{4}-\d\d-\d\d \S.*)?", row[state]), row
        assert row["run_on_a_card"] or not row["tuned"], f"tuned without a run: {row}"


def test_nothing_is_said_to_run_while_the_shipped_order_is_a_guess(support):
    """The sentence of the README, the rule of `auto` and the table change together."""
    none_ran = not any(row["run_on_a_card"] for row in support.read())
    assert ("Nothing has run on a GPU yet" in (ROOT / "README.md").read_text()) == none_ran
    assert ("no kernel has run on a GPU yet" in backends.AUTO_RULES[-1].source) == none_ran
