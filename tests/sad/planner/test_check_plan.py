"""`benchmarks/check_plan.py` on the CPU: it trains the planned run, without measuring memory."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.processes import run_python
from tests.sad.training import tiny

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "check_plan.py"


@pytest.mark.parametrize(
    "asked",
    [["--mode", "linear"], ["--mode", "cached"], ["--mode", "linear", "--lora", "4", "--dtype", "fp32"]],
    ids=" ".join,
)
def test_it_trains_what_was_planned(tmp_path, asked):
    for side in ("teacher", "student"):
        tiny.model("llama").config.save_pretrained(tmp_path / side)
    models = ["--teacher", str(tmp_path / "teacher"), "--student", str(tmp_path / "student")]
    sizes = ["--gpu", "1GB", "--batch", "4", "--seq", "16", "--device", "cpu", "--out", str(tmp_path / "plan.csv")]
    done = run_python(SCRIPT, *models, *sizes, *asked, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((tmp_path / "plan.csv").open())
    assert (row["status"], row["mode"], row["batch"]) == ("ok", asked[1], "4 x 1")
    assert float(row["loss"]) > 0 and row["allocated_gb"] == ""
