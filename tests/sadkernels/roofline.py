"""The gate on the instruction counts of the GPU kernels: compares compiled kernels with the committed roofline."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
COMMITTED = BENCHMARKS / "results" / "gpu_roofline_offline.csv"


def check_roofline(compiled: list[dict[str, str]]) -> int:
    """Fails if a hot loop has grown, and returns the number of compared kernels. Skips if the compiler is another one."""
    with open(COMMITTED, newline="") as stream:
        committed = list(csv.DictReader(stream))
    compilers = {row["compiler"] for row in compiled}
    if not compilers & {row["compiler"] for row in committed}:
        pytest.skip(f"the committed counts are not of {' and '.join(sorted(compilers))}")
    worse, compared = runpy.run_path(str(BENCHMARKS / "roofline.py"))["regressions"](compiled, committed)
    assert not worse, (
        "\n".join(worse)
        + "\nIf it is worth it, run benchmarks/gpu_roofline.py and commit the CSV and the plot with a reason."
    )
    return compared
