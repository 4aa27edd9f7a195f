"""`benchmarks/check_plan.py` on the CPU: it trains the planned run, without measuring memory."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import pytest

from tests.processes import run_python
from tests.sad.training import tiny

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "check_plan.py"


@pytest.fixture
def check_plan(monkeypatch):
    """Returns the functions of the script."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize(
    "asked",
    [["--mode", "linear"], ["--mode", "cached"], ["--mode", "linear", "--lora", "4", "--dtype", "fp32"]],
    ids=" ".join,
)
def test_it_trains_what_was_planned(tmp_path, monkeypatch, check_plan, asked):
    """The first case trains in a new interpreter, as users do, the others in a fork, which has imported the libraries."""
    for side in ("teacher", "student"):
        tiny.model("llama").config.save_pretrained(tmp_path / side)
    if asked != ["--mode", "linear"]:
        forked = lambda command, **options: run_python(*command[1:], folder=tmp_path)  # noqa: E731
        monkeypatch.setattr("subprocess.run", forked)
    models = ["--teacher", str(tmp_path / "teacher"), "--student", str(tmp_path / "student")]
    sizes = ["--gpu", "1GB", "--batch", "4", "--seq", "16", "--device", "cpu", "--out", str(tmp_path / "plan.csv")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *models, *sizes, *asked])
    assert check_plan["main"]() == 0
    (row,) = csv.DictReader((tmp_path / "plan.csv").open())
    assert (row["status"], row["mode"], row["batch"]) == ("ok", asked[1], "4 x 1")
    assert float(row["loss"]) > 0 and row["allocated_gb"] == ""
