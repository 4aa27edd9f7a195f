"""The demo's stages on the terminal: a bar for the running one, a line for each that is done, and the time of all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Stage:
    """One running stage.

    Attributes:
        made: What the stage made, in words; set it before the stage ends.
    """

    def __init__(self, progress: Progress, bar: Any) -> None:
        self._progress, self._bar = progress, bar
        self.made = ""

    def advance(self, note: str | None = None) -> None:
        """One more unit is done; `note` stands beside the bar."""
        self._progress.advance(self._bar)
        if note is not None:
            self._progress.update(self._bar, note=note)


class Stages:
    """Context manager over all stages.

    Args:
        console: Where they are shown.

    Attributes:
        records: For every finished stage its `name`, `seconds` and what it `made`.
    """

    def __init__(self, console: Console) -> None:
        self.records: list[dict[str, Any]] = []
        self._began = time.monotonic()
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
        """Time since the beginning."""
        return time.monotonic() - self._began

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Runs one stage of `total` units; yields its `Stage`."""
        bar = self._progress.add_task(name, total=total, note="")
        stage, began = Stage(self._progress, bar), time.monotonic()
        yield stage
        seconds = time.monotonic() - began
        self.records.append({"name": name, "seconds": seconds, "made": stage.made})
        self._progress.remove_task(bar)
        self._progress.console.print(
            f"[green]✓[/] {name:<34} {seconds:6.1f} s  [dim]{stage.made}[/]", highlight=False, soft_wrap=True
        )
