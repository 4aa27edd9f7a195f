"""Progress of the demo on the terminal: a bar for the running stage, and a line with its time for each finished one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Stage:
    """A running stage.

    Attributes:
        made: Short description of the result. Set it before the stage ends.
    """

    def __init__(self, progress: Progress, task_id: Any) -> None:
        self._progress, self._task_id = progress, task_id
        self.made = ""

    def advance(self, note: str | None = None) -> None:
        """Advances the bar by one unit and shows `note` beside it."""
        self._progress.advance(self._task_id)
        if note is not None:
            self._progress.update(self._task_id, note=note)


class Stages:
    """A context manager that shows and times the stages of a run.

    Args:
        console: The console for the output.

    Attributes:
        records: The `name`, `seconds` and `made` of every finished stage.
    """

    def __init__(self, console: Console) -> None:
        self.records: list[dict[str, Any]] = []
        self._start = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:>5.0f}/{task.total:<5.0f}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}[/]"),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the start of the run."""
        return time.monotonic() - self._start

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Runs one stage of `total` units and yields its `Stage`."""
        task_id = self._progress.add_task(name, total=total, note="")
        stage, start = Stage(self._progress, task_id), time.monotonic()
        yield stage
        seconds = time.monotonic() - start
        self.records.append({"name": name, "seconds": seconds, "made": stage.made})
        self._progress.remove_task(task_id)
        self._progress.console.print(
            f"[green]✓[/] {name:<34} {seconds:6.1f} s  [dim]{stage.made}[/]", highlight=False, soft_wrap=True
        )
