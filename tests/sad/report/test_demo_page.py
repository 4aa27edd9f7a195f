"""The page and the tables show the given numbers, and the page loads no other file."""

from __future__ import annotations

import math
import re

import pytest

from sad.errors import InputError
from sad.report import plots, table
from sad.report.overlay import token_pieces
from sad.report.page import demo_page
from sad.trajectories.spans import SpanKind
from tests.sad.report.pages import check_page


def metrics(successes: int, match: float | None) -> dict:
    base = {
        "tasks": 50,
        "successes": successes,
        "success_rate": successes / 50,
        "success_interval": [0.52, 0.78],
        "reasoning_length": 123.456,
        "cot_match": match,
        "steps": 14.25,
        "steps_interval": [12.0, 16.5],
        "actions": 7.0,
        "ends": {"won": successes, "repeats": 50 - successes},
    }
    return base | {"by_type": {"pick <two>": base, "look": base | {"tasks": 7, "successes": 3}}}


EVALUATIONS = {"teacher": metrics(42, 1.0), "SAD": metrics(33, 0.875), "token <KL>": metrics(0, None)}
RESULTS = {
    "version": "0.1.0",
    "settings": {"seed": 7},
    "seconds": 271.4,
    "hardware": {"processor": "x86 <script>", "threads": "2"},
    "models": {"teacher": {"parameters": 715136}, "student": {"parameters": 200000}},
    "data": {"unseen_tasks": 50},
    "evaluations": EVALUATIONS,
    "differences": {"token <KL>": {"mean": -0.04, "low": -0.12, "high": 0.05, "p": 0.4127}},
    "curves": {
        "teacher": [(step, 6 / step) for step in range(1, 1001)],
        "reason": [(10 * k, 2 / k) for k in range(1, 60)],
        "act": [(10 * k, 1 / k) for k in range(1, 60)],
    },
    "stages": [{"name": "teacher learns", "seconds": 100.04, "made": "a teacher"}],
}


def test_table_cells() -> None:
    rows = table.comparison(EVALUATIONS).rows
    success, length, match, steps, invalid = map(str, rows[1][1:])
    assert (success, length, match, steps, invalid) == ("66 % (52–78)", "123.5", "87.5 %", "14.2 (12.0–16.5)", "–")
    assert str(rows[2][3]) == "–"
    header, types = table.by_type(EVALUATIONS)
    assert header == ["task type", *EVALUATIONS] and types[0] == ["look", *["3 of 7"] * 3]
    assert table.ends(EVALUATIONS).rows == [["won", "42", "33", "0"], ["repeats", "8", "17", "50"]]


@pytest.mark.parametrize("colors", [None, "truecolor"])
@pytest.mark.parametrize("agents", [1, 3, 9])
def test_no_cell_is_broken_in_a_terminal_of_80_columns(colors: str | None, agents: int, render) -> None:
    """The tables of `sad demo` and `sad eval`, with names that are long paths and intervals for every metric."""
    intervals = {"reasoning_length_interval": [110.5, 135.5], "cot_match_interval": [0.85, 0.9]}
    one = metrics(33, 0.875) | intervals | {"invalid_rate": 0.123, "invalid_rate_interval": [0.1, 0.15]}
    one["metrics"] = {"score": {"mean": 0.51234, "interval": [0.45, 0.561]}}
    names = ["untrained student", *(f"runs/household-{n}/student-of-the-large-teacher/model" for n in range(1, agents))]
    evaluations = dict.fromkeys(names, one)
    tables = (table.comparison, table.env_metrics, table.by_type, table.ends)
    lines = render([part for make in tables for part in table.terminal_tables(make(evaluations), stacked=True)], colors)
    shown = [line.rstrip() for line in lines.splitlines()]
    assert max(map(len, shown)) <= 80 and "…" not in lines
    counted = [word for line in shown for word in re.split(r" {2,}", line.strip())]
    for cell in (
        "66 %",
        "(52–78)",
        "123.5",
        "(110.5–135.5)",
        "87.5 %",
        "(85.0–90.0)",
        "14.2",
        "(12.0–16.5)",
        "12 %",
        "(10–15)",
    ):
        assert counted.count(cell) == agents, cell
    for cell in ("0.512", "(0.450–0.561)", "33 of 50", "3 of 7"):
        assert counted.count(cell) == agents, cell
    if agents == 3:  # each name is broken after a slash or a hyphen
        assert counted.count("runs/household-1/") == 4


def test_names_are_folded_between_words() -> None:
    assert table.folded("token_reverse_kl+curriculum", 20) == "token_reverse_kl\n+curriculum"
    assert table.folded("a name", 20) == "a name" and table.folded("two words", 5) == "two\nwords"
    assert table.folded("x" * 12, 5) == "xxxxx\nxxxxx\nxx" and table.folded("", 5) == ""


def test_page_is_complete_self_contained_and_escaped() -> None:
    text = "You see <b>a mug</b>.\nReasoning: I take it.\nAction: take mug\n"
    start, middle = text.index("Reasoning"), text.index("Action")
    pieces = token_pieces(text, [(start, middle), (middle, len(text))], [SpanKind.REASON, SpanKind.ACT])
    page = demo_page(RESULTS, {"put a mug <here>": pieces})
    checker = check_page(page)
    assert checker.count("svg") == 3 and checker.count("polyline") == 3
    shown = (
        "66 %52–78",
        "715,136",
        "seed 7",
        "271 s",
        "100.0",
        "I take it.",
        "take mug",
        "pick <two>",
        "33 of 50",
        "token <KL>",
        "-4",
        "-12 to +5",
        "0.413",
    )
    for text in shown:
        assert text in checker.text, text
    assert "You see &lt;b&gt;a mug" in page and "put a mug &lt;here&gt;" in page


def test_curves_are_averaged_without_losing_their_mean() -> None:
    points = [(float(x), math.sin(x)) for x in range(1000)]
    thin = plots.averaged(points, 100)
    assert len(thin) == 100
    assert sum(y for _, y in thin) / 100 == pytest.approx(sum(y for _, y in points) / 1000)
    assert plots.averaged(points[:7], 100) == points[:7]


@pytest.mark.parametrize("log", [False, True])
def test_a_curve_stays_inside_its_axes(log: bool) -> None:
    svg = plots.line_chart(
        [plots.Series("a", "red", [(1, 5.0), (2, 0.031), (3, float("nan")), (4, 0.5)])], x_label="x", y_label="y", log=log
    )
    (points,) = re.findall(r'polyline points="([^"]+)"', svg)
    places = [tuple(map(float, pair.split(","))) for pair in points.split()]
    assert len(places) == 3
    assert all(42 <= x <= 308 and 12 <= y <= 172 for x, y in places)
    assert places[0][1] < places[2][1] < places[1][1]  # larger values are drawn higher
    ticks = [float(t) for t in re.findall(r'<text x="36" [^>]*>([\d.e+-]+)<', svg)]
    assert min(ticks) <= 0.031 and max(ticks) >= 5 and 2 <= len(ticks) <= 8


def test_a_flat_curve_and_a_missing_one() -> None:
    assert "polyline" in plots.line_chart([plots.Series("a", "red", [(1, 2.0)])], x_label="x", y_label="y")
    assert "polyline" in plots.line_chart([plots.Series("a", "red", [(1, 2.0)])], x_label="x", y_label="y", log=True)
    with pytest.raises(InputError, match="finite point"):
        plots.line_chart([plots.Series("a", "red", [(1, float("nan"))])], x_label="x", y_label="y")


def test_bars_are_as_long_as_their_rates() -> None:
    svg = plots.rate_chart([plots.Rate("a", "red", 0.5, 0.4, 0.6), plots.Rate("b", "red", 1.0, 1.0, 1.0)])
    half, whole = (float(w) for w in re.findall(r'rect x="\d+" y="\d+" width="([\d.]+)"', svg))
    assert half == pytest.approx(whole / 2, abs=0.06)
