"""The CSV of a benchmark: one row per provider and case, with the hardware, the versions and the commit in every row."""

from __future__ import annotations

import csv
import functools
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import torch

OK, WRONG, FAILED, NO_MEMORY, NOT_RUN = "ok", "wrong", "failed", "out of memory", "not run"
MEASURES = (
    "ms",  # median time of one forward and backward; on a GPU with a cold L2
    "ms_warm",  # GPU only: mean time of back-to-back calls
    "times_pytorch",  # speed-up over PyTorch, median over the rounds
    "rounds",
    "peak_extra_mb",  # peak memory beyond the inputs, MiB
    "retained_mb",  # memory kept between forward and backward, MiB
    "moved_mb",  # least memory traffic, MiB; see `Case.moved_bytes`
    "copy_fraction",  # moved bytes per second, divided by the copy bandwidth
    "copy_gb_per_s",  # copy bandwidth of the device, GB/s
    "error",  # largest relative error of loss and gradients against float64
)
FIELDS = (
    *("op", "case", "rows", "vocab", "hidden_student", "hidden_teacher", "dtype", "supervised", "device"),
    *("provider", "status", "reason", *MEASURES),
)
Row = dict[str, object]

_ROOT = Path(__file__).resolve().parents[2]  # the repository, unless the package is installed as a copy
_PACKAGES = {"sad": "structured-agent-distillation", "triton": "triton", "liger": "liger-kernel", "trl": "trl"}


class CsvLog:
    """A CSV file that is complete after every row, so that an interrupted run leaves a valid file.

    Args:
        path: The file; missing folders are created.
        device: The device of the measurements.
        append: Whether to keep the rows of an existing file. Otherwise the file is overwritten.

    Attributes:
        done: By op, case and provider, the status of every row that was kept.

    Raises:
        OSError: The file cannot be written.
        ValueError: The file that is continued was not written by this class.
    """

    def __init__(self, path: Path, device: str, append: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._machine = machine_info(device)
        kept = read_csv(path) if append and path.exists() else []
        self.done = {(row["op"], row["case"], row["provider"]): row["status"] for row in kept}
        fields = [*FIELDS, *self._machine]
        partial = path.with_name(f"{path.name}.partial")  # a kill while the kept rows are written must not lose them
        with open(partial, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, fields, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        partial.replace(path)
        self._stream = open(path, "a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._stream, fields, restval="")

    def write(self, rows: Iterable[Row]) -> None:
        """Appends the rows and flushes each to the file."""
        for row in rows:
            self._writer.writerow(row | self._machine)
            self._stream.flush()

    def __enter__(self) -> CsvLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()


def write_csv(path: Path, rows: list[Mapping[str, object]]) -> None:
    """Writes rows with any columns and adds the columns of `machine_info`; a row's own value wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    complete = [machine_info() | row for row in rows]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(dict.fromkeys([*rows[0], *machine_info()])))
        writer.writeheader()
        writer.writerows(complete)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Reads the complete rows of a file that `CsvLog` wrote.

    Raises:
        ValueError: A column of `FIELDS` is missing.
        OSError: The file cannot be read.
    """
    with open(path, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        missing = [name for name in FIELDS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"the columns {', '.join(missing)} are missing")
        return [row for row in reader if None not in row.values()]  # a killed run may leave a part of its last row


@functools.cache
def machine_info(device: str | torch.device | None = None) -> dict[str, str]:
    """Returns the hardware, the versions and the commit as CSV columns; a missing package has an empty version.

    Args:
        device: The device of the measurements. Default: the GPU if there is one.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    gpu = device.type == "cuda"
    return {
        "processor": torch.cuda.get_device_name(device) if gpu else _processor(),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": (torch.version.cuda or torch.version.hip or "") if gpu else "",
        **{name: _version(package) for name, package in _PACKAGES.items()},
        "commit": _commit(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=_ROOT, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):  # git is not installed, or waits for a lock
        return ""


def _commit() -> str:
    if not (_ROOT / "csrc").is_dir() or _git("rev-parse", "--show-toplevel") != str(_ROOT):
        return ""  # an installed copy: a repository around it is another project's
    return _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "-uno") else "")
