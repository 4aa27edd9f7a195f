"""Tables for the terminal, the pages and Markdown, and those that compare agents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sad.errors import printable

if TYPE_CHECKING:
    from rich.table import Table as RichTable

WIDTH = 80  # columns of a terminal
COLUMNS = ("agent", "success", "reasoning", "CoT match", "steps", "invalid")
UNITS = "Reasoning in tokens and steps per episode; invalid: share of the actions. 95 % intervals over tasks in parentheses."
MISSING = "–"
_LONGEST_NAME = 20  # characters of a line in the first column


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        value: The value.
        detail: Its interval or another remark, in parentheses in the terminal and in Markdown, below the value on a page.
        mark: CSS class of the value on a page: "strong", "failed" or "open".
    """

    value: str
    detail: str = ""
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.detail})" if self.detail else self.value


class Table(NamedTuple):
    """A table. Its cells are text or `Cell`s; the first cell of a row names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]


def comparison(evaluations: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns one row per agent with the cells of `COLUMNS`.

    Args:
        evaluations: Agent name to the metrics that `sad.evaluate` returned.
    """
    return Table(COLUMNS, [[name, *_cells(metrics)] for name, metrics in evaluations.items()])


def differences(found: Mapping[str, Mapping[str, float]]) -> Table:
    """Returns one row per agent: how much more the first agent solves, in points of success, and the p value.

    Args:
        found: Agent name to `mean`, `low` and `high` of the difference in [-1, 1], and `p`.
    """
    rows = []
    for name, one in found.items():
        mean, low, high = (f"{100 * one[key]:+.0f}" for key in ("mean", "low", "high"))
        rows.append([name, Cell(mean, f"{low} to {high}"), f"{one['p']:.3f}"])
    return Table(["SAD against", "difference, points", "p"], rows)


def by_type(evaluations: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns one row per task type: solved tasks and all tasks of each agent.

    Args:
        evaluations: As in `comparison`, with `by_type`.
    """
    types = sorted({kind for metrics in evaluations.values() for kind in metrics["by_type"]})
    rows = []
    for kind in types:
        parts = [metrics["by_type"].get(kind) for metrics in evaluations.values()]
        rows.append([kind, *(f"{p['successes']} of {p['tasks']}" if p else MISSING for p in parts)])
    return Table(["task type", *evaluations], rows)


def env_metrics(evaluations: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns one row per metric of the environment: its mean for each agent."""
    per_agent = [metrics.get("metrics", {}) for metrics in evaluations.values()]
    rows = []
    for name in dict.fromkeys(name for own in per_agent for name in own):
        parts = [own.get(name, {"mean": None, "interval": None}) for own in per_agent]
        rows.append([name, *(_number(part["mean"], part["interval"], 3) for part in parts)])
    return Table(["metric (mean)", *evaluations], rows)


def ends(evaluations: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns one row per reason: how many episodes of each agent ended for it."""
    reasons = list(dict.fromkeys(reason for metrics in evaluations.values() for reason in metrics["ends"]))
    rows = [[reason, *(str(metrics["ends"].get(reason, 0)) for metrics in evaluations.values())] for reason in reasons]
    return Table(["episode ended", *evaluations], rows)


def rich_table(
    header: Sequence[str], rows: Iterable[Sequence[str | Cell]], title: str | None = None, *, compact: bool = False
) -> RichTable:
    """Returns a table for a rich console. No text is read as markup.

    Args:
        header: Names of the columns.
        rows: Cells.
        title: Title above the table.
        compact: Without frame, and no cell is wrapped by the console.
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    frame = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "collapse_padding": True} if compact else {}
    heading = None if title is None else Text(printable(title))
    table = RichTable(title=heading, title_justify="left", title_style="bold", **frame)
    for index, name in enumerate(header):
        justify = "right" if index else "left"
        table.add_column(Text(printable(name)), justify=justify, no_wrap=compact or index == 0, vertical="top")
    for row in rows:
        table.add_row(*(Text(printable(str(cell)), style=_style(cell)) for cell in row))
    return table


def terminal_tables(table: Table, title: str | None = None, *, stacked: bool = False, width: int = WIDTH) -> list[RichTable]:
    """Returns tables for a rich console that fit its width: the columns are spread over several tables if needed.

    Args:
        table: The table. Names in the first column and in the header are folded between words.
        title: Title above the first table.
        stacked: Whether the detail of a cell is on a line of its own.
        width: Columns of the terminal.
    """
    header = [table.header[0], *(folded(name, _LONGEST_NAME) for name in table.header[1:])]
    rows = [[folded(str(row[0]), _LONGEST_NAME), *(_terminal_cell(cell, stacked) for cell in row[1:])] for row in table.rows]
    widths = [max(_length(str(row[column])) for row in [header, *rows]) for column in range(len(header))]
    made: list[RichTable] = []
    start = 1
    while start < len(header) or not made:
        end, used = start, widths[0]
        while end < len(header) and (end == start or used + 2 + widths[end] <= width):
            used += 2 + widths[end]
            end += 1
        columns = [0, *range(start, end)]
        part = [[row[column] for column in columns] for row in rows]
        made.append(rich_table([header[column] for column in columns], part, None if made else title, compact=True))
        start = end
    return made


def folded(text: str, width: int) -> str:
    """Breaks a name into lines of at most `width` characters: before `+` or after a space or one of `/_-.` if possible."""
    lines = [""]
    for word in re.findall(r"[+]?[^\s/_+.-]*[\s/_.-]?", text):
        if len(lines[-1] + word.rstrip()) > width and lines[-1]:
            lines.append("")
        while len(word.rstrip()) > width:
            lines[-1], word = word[:width], word[width:]
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(table: Table) -> str:
    """Returns a table in Markdown, with the first column on the left and numbers on the right."""
    lines = ["|".join(["---", *["---:"] * (len(table.header) - 1)])]
    return "\n".join(f"|{line}|" for line in (_markdown_row(table.header), *lines, *map(_markdown_row, table.rows)))


def markdown_text(text: str) -> str:
    """Escapes text for Markdown."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(printable(text).split()))


def percent(rate: float, digits: int = 0) -> str:
    """Formats a rate in [0, 1] as a percentage."""
    return f"{100 * rate:.{digits}f} %"


def _markdown_row(row: Sequence[str | Cell]) -> str:
    return "|".join(f" {markdown_text(str(cell))} " for cell in row)


def _terminal_cell(cell: str | Cell, stacked: bool) -> Cell:
    plain = Cell(cell) if isinstance(cell, str) else cell
    return plain._replace(value=f"{plain.value}\n({plain.detail})", detail="") if stacked and plain.detail else plain


def _length(text: str) -> int:
    from rich.cells import cell_len

    return max(cell_len(printable(line)) for line in text.split("\n"))


def _style(cell: str | Cell) -> str:
    return "bold" if isinstance(cell, Cell) and cell.mark in ("strong", "failed") else ""


def _cells(metrics: Mapping[str, Any]) -> list[Cell]:
    def cell(name: str, interval: str, digits: int, rate: bool = False) -> Cell:
        return _number(metrics.get(name), metrics.get(interval), digits, rate)

    return [
        cell("success_rate", "success_interval", 0, True),
        cell("reasoning_length", "reasoning_length_interval", 1),
        cell("cot_match", "cot_match_interval", 1, True),
        cell("steps", "steps_interval", 1),
        cell("invalid_rate", "invalid_rate_interval", 0, True),
    ]


def _number(value: float | None, interval: Sequence[float] | None, digits: int, rate: bool = False) -> Cell:
    """Formats a value with its 95 % interval, if there is one."""
    if value is None:
        return Cell(MISSING)
    scale, unit = (100, " %") if rate else (1, "")
    low_high = f"{scale * interval[0]:.{digits}f}–{scale * interval[1]:.{digits}f}" if interval else ""
    return Cell(f"{scale * value:.{digits}f}{unit}", low_high)
