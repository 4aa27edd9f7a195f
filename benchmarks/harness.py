"""What every benchmark here shares: providers timed in turns, memory, the machine, and the CSV.

A benchmark checks its results against float64 before it times anything. The providers of a case run one after the other
in every round, so that a machine that slows down slows all of them, and the ratio is the median of the ratios of the rounds.
"""

from __future__ import annotations

import csv
import gc
import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

RESULTS = Path(__file__).parent / "results"


def time_in_turns(providers: dict[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of every provider in every round."""
    for run in providers.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in providers}
    for _ in range(rounds):
        for name, run in providers.items():
            gc.collect()
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def speedups(seconds: dict[str, list[float]], baseline: str) -> dict[str, float]:
    """How many times faster than `baseline`, the median over the rounds."""
    return {name: median(b / s for b, s in zip(seconds[baseline], own)) for name, own in seconds.items()}


def peak_extra_memory(run: Callable[[], object]) -> int:
    """Bytes by which the resident set grew at most during one call (CPU; sampled every 0.2 ms)."""
    gc.collect()
    done = threading.Event()
    peak = base = _resident()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _resident())
            time.sleep(2e-4)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak - base


def _resident() -> int:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def copy_bandwidth(size: int = 256 << 20) -> float:
    """Bytes per second that a large copy reads and writes."""
    source, target = torch.ones(size // 4), torch.ones(size // 4)
    best = min(time_in_turns({"copy": lambda: target.copy_(source)}, rounds=7)["copy"])
    return 2 * size / best


def machine() -> dict[str, str]:
    """Hardware, versions and commit, as columns of every row."""
    return {
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent)
        return done.stdout.strip()

    changed = "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return git("rev-parse", "--short", "HEAD") + changed


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    """Writes the rows, each completed by `machine()`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = machine()
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=[*rows[0], *about])
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)
