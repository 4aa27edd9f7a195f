"""Tables that compare agents, for the terminal and for the demo's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sad.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("agent", "success", "95 % interval", "reasoning tokens", "CoT match", "steps", "invalid actions")
_MISSING = "–"


def comparison(evaluations: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Returns one row per agent with the cells of `COLUMNS`.

    Args:
        evaluations: Agent name to the metrics that `sad.evaluate` returned.
    """
    return [[name, *_cells(metrics)] for name, metrics in evaluations.items()]


def by_type(evaluations: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and one row per task type: solved tasks and all tasks of each agent.

    Args:
        evaluations: As in `comparison`, with `by_type`.
    """
    types = sorted({kind for metrics in evaluations.values() for kind in metrics["by_type"]})
    rows = []
    for kind in types:
        parts = [metrics["by_type"].get(kind) for metrics in evaluations.values()]
        rows.append([kind, *(f"{p['successes']} of {p['tasks']}" if p else _MISSING for p in parts)])
    return ["task type", *evaluations], rows


def env_metrics(evaluations: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and one row per metric of the environment: its mean for each agent."""
    per_agent = [metrics.get("metrics", {}) for metrics in evaluations.values()]
    rows = []
    for name in dict.fromkeys(name for own in per_agent for name in own):
        parts = [own.get(name, {"mean": None, "interval": None}) for own in per_agent]
        rows.append([name, *(_number(part["mean"], part["interval"], 3) for part in parts)])
    return ["environment metric (mean)", *evaluations], rows


def ends(evaluations: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and one row per reason: how many episodes of each agent ended for it."""
    reasons = list(dict.fromkeys(reason for metrics in evaluations.values() for reason in metrics["ends"]))
    rows = [[reason, *(str(metrics["ends"].get(reason, 0)) for metrics in evaluations.values())] for reason in reasons]
    return ["episode ended", *evaluations], rows


def rich_table(
    header: list[str] | tuple[str, ...], rows: list[list[str]], title: str | None = None, *, stacked: bool = False
) -> Table:
    """Returns a table for a rich console. `stacked` puts text in parentheses on its own line. No text is read as markup."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=None if title is None else Text(printable(title)), title_justify="left", title_style="bold")
    for index, name in enumerate(header):
        table.add_column(Text(printable(name)), justify="right" if index else "left", no_wrap=index == 0)
    for row in rows:
        cells = (cell.replace(" (", "\n(") if stacked and index else cell for index, cell in enumerate(row))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _cells(metrics: Mapping[str, Any]) -> list[str]:
    low, high = metrics["success_interval"]

    def cell(name: str, rate: bool = False) -> str:
        return _number(metrics.get(name), metrics.get(f"{name}_interval"), 1, rate)

    return [
        f"{percent(metrics['success_rate'])} ({metrics['successes']} of {metrics['tasks']})",
        f"{100 * low:.0f} to {100 * high:.0f} %",
        cell("reasoning_length"),
        cell("cot_match", rate=True),
        cell("steps"),
        cell("invalid_rate", rate=True),
    ]


def _number(value: float | None, interval: Sequence[float] | None, digits: int, rate: bool = False) -> str:
    """Formats a value, with its 95 % interval in parentheses if there is one."""
    if value is None:
        return _MISSING
    scale, unit = (100, " %") if rate else (1, "")
    around = f" ({scale * interval[0]:.{digits}f} to {scale * interval[1]:.{digits}f})" if interval else ""
    return f"{scale * value:.{digits}f}{unit}{around}"


def percent(rate: float, digits: int = 0) -> str:
    """Formats a rate in [0, 1] as a percentage."""
    return f"{100 * rate:.{digits}f} %"
