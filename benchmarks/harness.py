"""Where the scripts here write, and how: the harness itself is `sadkernels.bench`, which every installation has."""

from __future__ import annotations

from pathlib import Path

from sadkernels.bench.record import write_csv

__all__ = ["RESULTS", "write_csv"]

RESULTS = Path(__file__).parent / "results"
