"""The CSV is valid whenever the run ends, and names the hardware and the versions."""

from __future__ import annotations

import pytest

from sadkernels.bench.record import FIELDS, CsvLog, machine_info, read_csv, write_csv
from tests.processes import run_python


def test_a_killed_run_leaves_a_valid_file(tmp_path):
    path = tmp_path / "new" / "run.csv"
    code = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from sadkernels.bench.cases import Case\n"
        "from sadkernels.bench.measure import TimingConfig, measure_cases\n"
        "from sadkernels.bench.record import CsvLog\n"
        "log = CsvLog(Path(sys.argv[1]), 'cpu')\n"
        "cases = [Case(4, 9, 'float32', 0.5), Case(4, 9, 'float32', 1.0)]\n"
        "config = TimingConfig(0, 1, 1)\n"
        "for rows in measure_cases(cases, torch.device('cpu'), only=['pytorch', 'liger'], config=config):\n"
        "    log.write(rows)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run_python("-c", code, path, folder=tmp_path)
    assert done.returncode < 0, done.stderr
    rows = read_csv(path)
    assert [(row["provider"], row["case"]) for row in rows] == [
        ("pytorch", "4 x 9 float32, 50 % supervised"),
        ("liger", "4 x 9 float32, 50 % supervised"),
    ]
    assert all(row["torch"] and row["processor"] and row["threads"] for row in rows)
    assert rows[0]["status"] == "ok" and rows[1]["reason"]


def test_a_file_without_rows_is_valid_too(tmp_path):
    CsvLog(tmp_path / "run.csv", "cpu").__exit__(None, None, None)
    assert read_csv(tmp_path / "run.csv") == []


def test_a_file_is_continued_after_its_last_complete_row(tmp_path):
    path = tmp_path / "run.csv"
    row = {"op": "span_kl", "case": "4 x 9", "provider": "pytorch", "status": "ok"}
    with CsvLog(path, "cpu") as log:
        log.write([row])
    path.write_text(path.read_text() + "span_kl,4 x 9,lig")  # killed while it wrote the next row
    with CsvLog(path, "cpu", append=True) as log:
        assert log.done == {("span_kl", "4 x 9", "pytorch"): "ok"}
        log.write([row | {"provider": "liger"}])
    assert [x["provider"] for x in read_csv(path)] == ["pytorch", "liger"]
    with CsvLog(path, "cpu") as log:
        assert not log.done
    assert read_csv(path) == []


def test_other_files_are_refused(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="provider"):
        read_csv(tmp_path / "other.csv")


def test_write_csv_completes_rows_of_any_columns(tmp_path):
    write_csv(tmp_path / "x.csv", [{"kernel": "k", "triton": "the row's own"}])
    header, line = (tmp_path / "x.csv").read_text().splitlines()
    assert header.startswith("kernel,triton,processor") and "torch" in header
    assert line.startswith("k,the row's own,")
    assert not set(FIELDS) & set(machine_info("cpu"))
