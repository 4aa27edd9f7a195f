"""The table that compares agents: the same cells for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("agent", "success", "95 % interval", "reasoning tokens", "CoT match", "steps", "invalid actions")
_MISSING = "–"


def comparison(evaluations: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """One row of cells per agent, in the order of `COLUMNS`.

    Args:
        evaluations: Agent's name to what `sad.agents.evaluate.evaluate` returned.
    """
    return [[name, *_cells(figures)] for name, figures in evaluations.items()]


def by_type(evaluations: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Solved and played tasks per task type: a header row, then one row per type.

    Args:
        evaluations: As for `comparison`, with `by_type`.
    """
    types = sorted({kind for figures in evaluations.values() for kind in figures["by_type"]})
    rows = []
    for kind in types:
        parts = [figures["by_type"].get(kind) for figures in evaluations.values()]
        rows.append([kind, *(f"{p['successes']} of {p['tasks']}" if p else _MISSING for p in parts)])
    return ["task type", *evaluations], rows


def own_metrics(evaluations: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The means of the world's own figures: a header row, then one row per figure."""
    own = [figures.get("metrics", {}) for figures in evaluations.values()]
    rows = []
    for name in dict.fromkeys(name for figures in own for name in figures):
        parts = [figures.get(name, {"mean": None, "interval": None}) for figures in own]
        rows.append([name, *(_number(part["mean"], part["interval"], 3) for part in parts)])
    return ["the world's mean", *evaluations], rows


def ends(evaluations: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """How many episodes ended for which reason: a header row, then one row per reason that occurred."""
    reasons = list(dict.fromkeys(reason for figures in evaluations.values() for reason in figures["ends"]))
    rows = [[reason, *(str(figures["ends"].get(reason, 0)) for figures in evaluations.values())] for reason in reasons]
    return ["episode ended", *evaluations], rows


def rich_table(
    header: list[str] | tuple[str, ...], rows: list[list[str]], title: str | None = None, *, stacked: bool = False
) -> Table:
    """The cells as a table for a rich console; `stacked` puts what stands in parentheses on a line of its own."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(cell.replace(" (", "\n(") if stacked and index else cell for index, cell in enumerate(row)))
    return table


def _cells(figures: Mapping[str, Any]) -> list[str]:
    low, high = figures["success_interval"]

    def cell(name: str, rate: bool = False) -> str:
        return _number(figures.get(name), figures.get(f"{name}_interval"), 1, rate)

    return [
        f"{percent(figures['success_rate'])} ({figures['successes']} of {figures['tasks']})",
        f"{100 * low:.0f} to {100 * high:.0f} %",
        cell("reasoning_length"),
        cell("cot_match", rate=True),
        cell("steps"),
        cell("invalid_rate", rate=True),
    ]


def _number(value: float | None, interval: Sequence[float] | None, digits: int, rate: bool = False) -> str:
    """A figure, with its 95 % interval in parentheses where there is one."""
    if value is None:
        return _MISSING
    scale, unit = (100, " %") if rate else (1, "")
    around = f" ({scale * interval[0]:.{digits}f} to {scale * interval[1]:.{digits}f})" if interval else ""
    return f"{scale * value:.{digits}f}{unit}{around}"


def percent(rate: float, digits: int = 0) -> str:
    """A rate in [0, 1] as a percentage."""
    return f"{100 * rate:.{digits}f} %"
