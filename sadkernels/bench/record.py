"""The CSV of a run: one row per provider and case, each complete in itself, written as soon as it is known."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from sadkernels.bench.machine import about

OK, WRONG, FAILED, NO_MEMORY, NOT_RUN = "ok", "wrong", "failed", "out of memory", "not run"
MEASURES = (
    "ms",  # median of one forward and backward; on a GPU with a cold L2
    "ms_warm",  # GPU only: mean of calls back to back
    "times_pytorch",  # median over the rounds of PyTorch's time by this one's
    "rounds",
    "peak_extra_mb",  # MiB beyond the inputs, at the peak
    "retained_mb",  # MiB that stay between forward and backward
    "moved_mb",  # MiB that had to move
    "copy_fraction",  # moved bytes per second, by those of a large copy
    "copy_gb_per_s",
    "error",  # largest relative error of loss and gradients against float64
)
FIELDS = (
    *("op", "case", "rows", "vocab", "hidden_student", "hidden_teacher", "dtype", "supervised", "device"),
    *("provider", "status", "reason", *MEASURES),
)
Row = dict[str, object]


class CsvLog:
    """A CSV that is valid after every row: a run that is killed leaves what it had measured.

    Args:
        path: Written anew; its folder is made.
        device: Where the measurements are made.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, device: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._about = about(device)
        self._stream = open(path, "w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._stream, [*FIELDS, *self._about], restval="")
        self._writer.writeheader()
        self._stream.flush()

    def write(self, rows: Iterable[Row]) -> None:
        """Appends the rows and hands them to the system."""
        for row in rows:
            self._writer.writerow(row | self._about)
            self._stream.flush()

    def __enter__(self) -> CsvLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()


def write_csv(path: Path, rows: list[Mapping[str, object]]) -> None:
    """Writes rows of any columns at once, each completed by hardware, versions and commit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    complete = [about() | row for row in rows]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(dict.fromkeys([*rows[0], *about()])))
        writer.writeheader()
        writer.writerows(complete)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file that `CsvLog` wrote.

    Raises:
        ValueError: The file is not such a CSV.
        OSError: The file cannot be read.
    """
    with open(path, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        lacking = [name for name in FIELDS if name not in (reader.fieldnames or ())]
        if lacking:
            raise ValueError(f"columns {', '.join(lacking)} are missing")
        return list(reader)
