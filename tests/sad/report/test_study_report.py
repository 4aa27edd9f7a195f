"""The report of a study shows every cell, the given numbers and the paper's: page, Markdown and terminal."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest

from sad.report import paper, plots, study_tables
from sad.report.study import markdown, page, terminal_table
from sad.trajectories.inspection import Bin
from tests.sad.report.example_study import EXHIBITS, MEASURED, MESSAGE, SUMMARY
from tests.sad.report.pages import check_page

SMALL, LARGE, NOT_STARTED = SUMMARY["groups"]


def cells(table, first: str) -> list[str]:
    (row,) = (row for row in table.rows if row[0] == first)
    return [str(cell) for cell in row]


def test_results_have_the_form_of_the_papers_tables() -> None:
    table = study_tables.results_table(SMALL, "token_kl")
    assert table.header == [
        *("method", "success, %", "difference, points", "p", "reasoning tokens", "CoT match, %", "steps", "invalid actions"),
        *("learning rate", "seeds", "state"),
    ]
    difference, p = "+5.5 (+2.7 to +8.3)", "<0.001 (Holm 0.001)"
    own = ["48.7 (45.7–51.7)", difference, p, "36.6 (35.4–37.8)", "74.6 (73.6–75.6)", "11.8 (11.4–12.2)", "0.52 (0.47–0.57)"]
    assert cells(table, "imitation") == ["imitation", *own, "0.01", "3", "done"]
    assert cells(table, "token_kl")[2:4] == ["baseline", "–"]
    assert cells(table, "teacher")[1:4] == ["74.2", "–", "–"] and cells(table, "teacher")[4:7] == ["33.2", "100.0", "10.5"]
    assert cells(table, "act_only")[-2:] == ["2", "failed"]
    assert cells(study_tables.results_table(LARGE, "token_kl"), "imitation")[1:] == ["–"] * 8 + ["0", "open"]


def test_a_score_that_is_not_the_success_has_a_column() -> None:
    group = deepcopy(SMALL)
    group["methods"][1]["metrics"]["score"] = {"mean": 0.7, "low": 0.6, "high": 0.8}
    table = study_tables.results_table(group, "token_kl")
    assert table.header[2] == "score, %" and cells(table, "sad")[2] == "70.0 (60.0–80.0)"
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_the_outcome_names_only_decided_differences() -> None:
    assert study_tables.outcome(SMALL, "token_kl") == (
        "token_kl solves 43.2 % of the tasks. Better: imitation (+5.5). Worse: act_only (-43.0). "
        "Not decided: sad (+0.9), token_reverse_kl+curriculum (-3.1)."
    )
    assert study_tables.outcome(NOT_STARTED, "token_kl") == "token_kl has no result yet."
    assert study_tables.visible_line(SMALL).endswith(" 4.0 to 5.1 points.")
    assert study_tables.visible_line(NOT_STARTED) == ""


def test_directions_are_compared_with_the_paper() -> None:
    table = study_tables.directions_table(SUMMARY, "household")
    assert [[str(cell) for cell in row[2:]] for row in table.rows] == [
        ["+4.2", "not decided"],
        ["-2.6", "same"],
        ["+4.2", "same"],
        ["-2.6", "open"],
        ["+4.2", "open"],
    ]
    assert study_tables.directions_table({**SUMMARY, "baseline": "sad"}, "household") is None
    assert study_tables.directions_table(SUMMARY, "elsewhere") is None is study_tables.paper_table("elsewhere")
    opposite = deepcopy(SUMMARY)
    opposite["groups"][1]["methods"][1]["difference"]["mean"] = -0.06
    assert study_tables.directions_table(opposite, "household").rows[2][3] == "opposite"


def test_the_papers_figures_are_those_of_its_tables(shared_data) -> None:
    text = (shared_data.parent / "paper" / "structured_agent_distillation.txt").read_text()
    titles = {
        "teacher": "Teacher(GPT)",
        "token_kl": "Token-{}",
        "sad": "Ours ({})",
        "reason_only": "Only Reasoning Supervision",
    }
    titles |= {
        "act_only": "Only Action Supervision",
        "no_spans": "No Span Segmentation",
        "random_spans": "Random Span Masking",
    }
    for place, rows in enumerate(paper.TABLES.values()):
        for row in rows:
            (line,) = re.findall(f"^{re.escape(titles[row.method].format(row.student))}\t.*", text, re.MULTILINE)
            numbers = [float(number) for number in line.split("\t")[1:] if re.fullmatch(r"[\d.]+", number)]
            own = [row.success, row.reasoning_length, row.cot_match, row.steps]
            assert [value for value in own if value is not None] == (numbers[place::3] if len(numbers) > 3 else numbers)
    assert paper.success_difference("ALFWorld", "sad") == pytest.approx(4.2)
    assert paper.success_difference("ALFWorld", "token_kl") is None is paper.success_difference("WebShop", "act_only")


def test_the_page_is_complete_self_contained_and_escaped() -> None:
    made = page(SUMMARY, MEASURED, EXHIBITS)
    checker = check_page(made)
    text = " ".join(checker.text.split())
    for shown in (
        "Household <b>rooms</b>",
        "18 trainings with test results, 18 trainings to choose learning rates",
        "2 failed",
        "seeds 0, 1, 2",
        "4.1 h of training",
        "cost 3.50",
        "torch 2.13.0",
        "29 % of the teacher",
        f"act_only, seed 1, test tasks: {MESSAGE}",
        f"act_only, seed 100, select tasks: {MESSAGE}",
        "45.9",  # the paper's random spans
        "23,456",
        "0.75",  # GiB
        "431 trajectories",
        "household/train/<0>",
        *study_tables.how_to_read(SUMMARY),
    ):
        assert shown in text, shown
    # small: bars, 4 curves; large: bars, 1 curve; 4 metrics over size; 2 histograms
    assert checker.count("svg") == 1 + 4 + 1 + 1 + 4 + 2
    assert made.count('class="r1"') + made.count('class="r0"') == 3  # one lesson under three kinds of labels
    assert made.count('class="o0"') + made.count('class="o1"') == 1  # only under `all`
    assert "The last point is of 500 tasks, the others are of the first 200 of these." in text


def test_a_study_without_any_result_has_a_page() -> None:
    nothing = {"seconds": 0.0, "cost": None, "devices": [], "versions": {}, "methods": []}
    summary = {**SUMMARY, "groups": [NOT_STARTED]}
    checker = check_page(page(summary, nothing, {}))
    assert checker.count("svg") == 0 and "0 trainings with test results" in checker.text
    assert "| sad | – |" in markdown(summary, nothing)


def test_markdown_tables_are_complete_and_escaped() -> None:
    text = markdown(SUMMARY, MEASURED)
    assert "<script>" not in text.replace("\\<script\\>", "") and "# Household \\<b\\>rooms\\</b\\>" in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    assert "| token\\_kl | 43.2 (40.2–46.2) | 55.0 (52.0–58.0) |" in text  # over student size
    assert "| imitation | 48.7 (45.7–51.7) | +5.5 (+2.7 to +8.3) |" in text
    assert "| random\\_spans | 340M | 45.9 |" in text and "large (486,400)" in text


@pytest.mark.parametrize("colors", [None, "truecolor"])
def test_no_cell_is_broken_in_a_terminal_of_80_columns(colors: str | None, render) -> None:
    lines = render(terminal_table(SUMMARY), colors).splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    text = "\n".join(lines)
    for group in SUMMARY["groups"]:
        for row in study_tables.short_table(group, "token_kl").rows:
            words = [str(cell) for cell in row]
            start, end = words[0].split("+")[0], words[1:]  # the suffix of a long name has a line of its own
            assert re.search("[ ]+".join(map(re.escape, [start, *end])), text), words
    assert f"failed: act_only, seed 1, test tasks: {MESSAGE}" in " ".join(text.split())


def test_colors_have_enough_contrast() -> None:
    from importlib.resources import files

    style = (files("sad.report") / "templates" / "style.css").read_text()
    light, dark = (
        dict(re.findall(r"--(\w+): (#[0-9a-f]+);", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)
    )
    assert light.keys() == dark.keys() and len(light) > 25
    for colors in (light, dark):
        for name in ("ink", "quiet", "alarm"):
            for behind in ("paper", "panel"):
                assert contrast(colors[name], colors[behind]) >= 4.5, name
        for name in (
            "reason",
            "act",
            "observe",
            "none",
            "teacher",
            "student",
            "other",
            "baseline",
            *(f"m{n}" for n in range(10)),
        ):
            assert contrast(colors[name], colors["paper"]) >= 3, name
        for kind in "rao":
            for shade in "01":
                assert contrast(colors[kind], colors[kind + shade]) >= 4.5, kind + shade


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    channels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_intervals_of_a_curve_stay_inside_its_axes() -> None:
    series = plots.Series("a", "red", [(1, 2.0), (2, 3.0)], [(1.5, 2.5), (0.2, 9.7)])
    svg = plots.line_chart([series], x_label="x", y_label="y")
    whiskers = [tuple(map(float, found)) for found in re.findall(r'd="M[\d.]+ ([\d.]+)V([\d.]+)"', svg)]
    assert len(whiskers) == 2 and all(12 <= high < low <= 172 for low, high in whiskers)
    assert svg.count("<circle") == 2 and svg.count("<polygon") == 1 and "a from 2 to 3" in svg


def test_bars_of_a_histogram_are_as_high_as_their_counts() -> None:
    svg = plots.histogram_chart([Bin(1, 5, 4), Bin(6, 10, 1)], "red", "spans", "tokens")
    four, one = (float(height) for height in re.findall(r' height="([\d.]+)"', svg))
    assert (
        four == pytest.approx(4 * one, abs=0.3)
        and "6 to 10 and more: 1" in svg
        and "5 values, most often 1 to 5 tokens" in svg
    )
    assert plots.histogram_chart([], "red", "spans", "tokens") == ""
