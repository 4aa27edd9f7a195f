"""Runs the cells of a study as processes of their own, several side by side."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from sad import files
from sad.study.cells import FAILED, LOG, TEST, Cell, Results, all_cells
from sad.study.config import Study

_POLL_SECONDS = 0.2
_LAST_LINES = 4000  # characters of a log in which the message of a failed cell is looked for


class Running:
    """A cell that runs in a process."""

    def __init__(self, cell: Cell, place: Path, command: list[str], threads: int) -> None:
        self.cell, self.place, self.start = cell, place, time.monotonic()
        place.mkdir(parents=True, exist_ok=True)
        (place / FAILED).unlink(missing_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with (place / LOG).open("wb") as log:
            # The cell ends when its standard input does, so no cell outlives a runner that is killed.
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def message(self) -> str:
        """Returns the last line of the log."""
        text = (self.place / LOG).read_bytes()[-_LAST_LINES:].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"exit code {self.process.returncode}: {lines[-1] if lines else 'no output'}"


def run_cells(study: Study, config: Path, folder: Path, jobs: int, on_change: Callable[[Progress], None]) -> None:
    """Runs all cells that are not finished. A cell that fails is recorded, and the others go on.

    Args:
        study: The study.
        config: Its YAML file, for the processes.
        folder: Its folder, with the shared files.
        jobs: Number of cells that run side by side.
        on_change: Called after each change, and at least once per second.
    """
    results, tried = Results(folder, study), set[Cell]()
    running: list[Running] = []
    progress = Progress(study, results)
    try:
        while True:
            todo = progress.update(running, tried)
            for cell in todo[: jobs - len(running)]:
                tried.add(cell)
                running.append(Running(cell, results.place(cell), _command(study, config, folder, cell), study.threads))
            on_change(progress)
            if not running:
                return
            running = _wait(running, progress, on_change)
    finally:
        for one in running:
            one.process.kill()
            one.process.wait()


def _wait(running: list[Running], progress: Progress, on_change: Callable[[Progress], None]) -> list[Running]:
    """Waits until a process ends. Returns those that still run."""
    shown = time.monotonic()
    while all(one.process.poll() is None for one in running):
        time.sleep(_POLL_SECONDS)
        if time.monotonic() - shown > 1:
            shown = time.monotonic()
            on_change(progress)
    for one in running:
        if one.process.returncode is not None:
            progress.seconds[one.cell.panel].append(time.monotonic() - one.start)
            if one.process.returncode != 0:
                files.write_record(one.place / FAILED, {"message": one.message()})
    return [one for one in running if one.process.returncode is None]


def _command(study: Study, config: Path, folder: Path, cell: Cell) -> list[str]:
    options = ["--out", str(folder), "--cell", cell.name(study), "--ends-with-stdin"]
    return [sys.executable, "-m", "sad.cli.main", "study", "run-cell", str(config), *options]


class Progress:
    """How far a study is.

    Attributes:
        done: Number of finished cells per (environment, student, method).
        total: Number of all cells per (environment, student, method); those that choose a learning rate are included.
        solved: Share of solved tasks at the end of each finished test cell, per (environment, student, method).
        failed: Number of failed cells.
        running: Number of running cells.
        seconds: Seconds of the cells that this process has run, per panel.
        remaining: Number of cells per panel that are not finished.
    """

    def __init__(self, study: Study, results: Results) -> None:
        self.study, self._results = study, results
        self._finished: dict[Cell, float] = {}  # read once
        self.seconds: dict[str, list[float]] = {"select": [], TEST: []}
        self.done, self.total = Counter[tuple](), Counter[tuple]()
        self.solved: dict[tuple, list[float]] = {}
        self.remaining: Counter[str] = Counter()
        self.failed = self.running = 0

    def update(self, running: list[Running], tried: set[Cell]) -> list[Cell]:
        """Counts anew and returns the cells that can be started, in the order in which they should run."""
        known, waiting = all_cells(self.study, self._results)
        for cell in known:
            if cell not in self._finished and (result := self._results.read(cell)) is not None:
                success = result["points"][-1]["success"]
                self._finished[cell] = success.count("1") / len(success)
        self.done, self.total, self.solved = Counter(), Counter(), {}
        for cell in known:
            key = (cell.environment, cell.student, cell.method)
            self.total[key] += 1
            if cell in self._finished:
                self.done[key] += 1
                if cell.panel == TEST:
                    self.solved.setdefault(key, []).append(self._finished[cell])
        open_cells = [cell for cell in known if cell not in self._finished]
        self.failed = sum(self._results.failure(cell) is not None for cell in open_cells)
        self.running = len(running)
        self.remaining = Counter(cell.panel for cell in open_cells)
        self.remaining[TEST] += waiting
        started = {one.cell for one in running} | tried
        return sorted((cell for cell in open_cells if cell not in started), key=lambda cell: (cell.panel == TEST, cell.seed))

    def seconds_left(self, jobs: int) -> float | None:
        """Returns an estimate of the remaining seconds, or None before the first cell of this process is finished."""
        means = {panel: sum(taken) / len(taken) for panel, taken in self.seconds.items() if taken}
        if not means:
            return None
        longest = max(means.values())
        return sum(count * means.get(panel, longest) for panel, count in self.remaining.items()) / jobs
