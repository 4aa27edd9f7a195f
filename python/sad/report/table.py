"""The table that compares agents: the same cells for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("agent", "success", "95 % interval", "reasoning tokens", "CoT match", "steps")
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


def ends(evaluations: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """How many episodes ended for which reason: a header row, then one row per reason that occurred."""
    reasons = list(dict.fromkeys(reason for figures in evaluations.values() for reason in figures["ends"]))
    rows = [[reason, *(str(figures["ends"].get(reason, 0)) for figures in evaluations.values())] for reason in reasons]
    return ["episode ended", *evaluations], rows


def rich_table(header: list[str] | tuple[str, ...], rows: list[list[str]], title: str | None = None) -> Table:
    """The cells as a table for a rich console."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        table.add_row(*row)
    return table


def _cells(figures: Mapping[str, Any]) -> list[str]:
    low, high = figures["success_interval"]
    match = figures["cot_match"]
    return [
        f"{percent(figures['success_rate'])} ({figures['successes']} of {figures['tasks']})",
        f"{100 * low:.0f} to {100 * high:.0f} %",
        f"{figures['reasoning_length']:.1f}",
        _MISSING if match is None else percent(match, 1),
        f"{figures['steps']:.1f}",
    ]


def percent(rate: float, digits: int = 0) -> str:
    """A rate in [0, 1] as a percentage."""
    return f"{100 * rate:.{digits}f} %"
