"""The progress table of `sad study`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sad.study.runner import Progress

_LINE_SECONDS = 60  # between two lines if the output is not a terminal


@contextmanager
def live_table(console: Console, jobs: int) -> Iterator[Callable[[Progress], None]]:
    """Yields a function that shows the progress: a table that is updated in a terminal, else a line per minute."""
    from rich.live import Live

    if console.is_terminal:
        with Live(console=console, refresh_per_second=2, transient=True) as live:
            yield lambda progress: live.update(_table(progress, jobs))
        return
    last = [0.0, -1]

    def line(progress: Progress) -> None:
        done = sum(progress.done.values())
        if done != last[1] and time.monotonic() - last[0] > _LINE_SECONDS:
            last[:] = time.monotonic(), done
            console.print(_headline(progress, jobs), highlight=False, markup=False)

    yield line


def _headline(progress: Progress, jobs: int) -> str:
    done, left = sum(progress.done.values()), sum(progress.remaining.values())
    failed = f", {progress.failed} failed" if progress.failed else ""
    seconds = progress.seconds_left(jobs)
    estimate = "" if seconds is None else f", about {_duration(seconds)} left"
    return f"{done} of {done + left} cells, {progress.running} running{failed}{estimate}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{max(minutes, 1)} min"


def _table(progress: Progress, jobs: int) -> Table:
    from rich.table import Table

    table = Table(title=_headline(progress, jobs), title_justify="left")
    for heading in ("environment", "student", "method"):
        table.add_column(heading)
    for heading in ("cells", "solved"):
        table.add_column(heading, justify="right")
    for key, total in progress.total.items():
        solved = progress.solved.get(key)
        share = "" if not solved else f"{sum(solved) / len(solved):.1%}"
        table.add_row(*key, f"{progress.done[key]}/{total}", share)
    return table
