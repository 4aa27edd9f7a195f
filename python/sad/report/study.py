"""The report of a study as a page, in Markdown and in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sad.errors import printable
from sad.report import paper, study_charts, study_tables
from sad.report.page import render
from sad.report.table import Table, markdown_table, markdown_text, terminal_tables

if TYPE_CHECKING:
    from rich.console import RenderableType


def page(summary: Mapping[str, Any], measured: Mapping[str, Any], exhibits: Mapping[str, Mapping[str, Any]]) -> str:
    """Renders `report.html` of a study.

    Args:
        summary: As `sad.study.summary.summarize` returns it.
        measured: As `sad.study.timings.timings` returns it.
        exhibits: As `sad.study.exhibits.exhibits` returns them; an environment without lessons is left out.

    Returns:
        HTML that refers to no other file.
    """
    return render(
        "study.html",
        name=summary["name"],
        baseline=summary["baseline"],
        seeds=summary["seeds"],
        steps=summary["training_steps"],
        decided=study_tables.DECIDED,
        source=paper.SOURCE,
        counts=study_tables.run_counts(summary),
        machine=study_tables.machine(measured),
        environments=[_environment(summary, name, exhibits.get(name)) for name in _environments(summary)],
        how_to_read=study_tables.how_to_read(summary),
        methods=study_tables.methods_table(summary),
        timing=study_tables.timing_table(measured),
    )


def markdown(summary: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """Returns the tables of the report in Markdown. The arguments are those of `page`."""
    baseline = summary["baseline"]
    seeds = ", ".join(map(str, summary["seeds"]))
    parts = [
        f"# {markdown_text(summary['name'])}",
        f"{study_tables.run_counts(summary)}; seeds {seeds}; {summary['training_steps']} training steps.",
        markdown_text(study_tables.machine(measured)) + ".",
        "\n".join(
            f"* **{markdown_text(study_tables.group_title(group))}:** {markdown_text(study_tables.outcome(group, baseline))}"
            for group in summary["groups"]
        ),
    ]
    for name in _environments(summary):
        parts.append(f"## {markdown_text(name)}")
        for group in _groups(summary, name):
            parts += _markdown_group(group, baseline)
        for groups in study_tables.sizes(summary, name):
            parts.append(f"### Student size, {groups[0]['init']} weights (paper: Fig. 2)")
            parts.append(markdown_table(study_tables.sizes_table(groups)))
        parts += _markdown_paper(summary, name)
    parts += ["## How to read the tables", "\n".join(f"* {line}" for line in study_tables.how_to_read(summary))]
    parts += ["## Methods", markdown_table(study_tables.methods_table(summary))]
    parts += ["## Time and memory", markdown_table(study_tables.timing_table(measured))]
    return "\n\n".join(parts) + "\n"


def terminal_table(summary: Mapping[str, Any]) -> Iterable[RenderableType]:
    """Yields what a terminal of 80 columns shows: one table per environment and student, and the failed cells."""
    from rich.text import Text

    baseline = summary["baseline"]
    for group in summary["groups"]:
        yield from terminal_tables(study_tables.short_table(group, baseline), study_tables.group_title(group))
        for line in study_tables.failures(group):
            yield Text(printable(f"failed: {line}"))
        yield Text()
    yield Text(
        f"Means and 95 % intervals. Difference: points of success against {baseline}, in bold if the Holm p value is "
        f"below {study_tables.DECIDED}."
    )


def _environments(summary: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(group["environment"] for group in summary["groups"]))


def _groups(summary: Mapping[str, Any], environment: str) -> list[Mapping[str, Any]]:
    return [group for group in summary["groups"] if group["environment"] == environment]


def _environment(summary: Mapping[str, Any], name: str, exhibit: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what the page shows of an environment."""
    colors = study_charts.method_colors(summary)
    families = [
        {
            "init": groups[0]["init"],
            "table": study_tables.sizes_table(groups),
            **study_charts.size_charts(groups, colors),
        }
        for groups in study_tables.sizes(summary, name)
    ]
    return {
        "name": name,
        "groups": [_group(group, summary["baseline"], colors) for group in _groups(summary, name)],
        "sizes": families,
        "directions": study_tables.directions_table(summary, name),
        "paper": study_tables.paper_table(name),
        "paper_environment": paper.closest_environment(name),
        "lessons": None if exhibit is None else study_charts.lessons(exhibit),
    }


def _group(group: Mapping[str, Any], baseline: str, colors: Mapping[str, str]) -> dict[str, Any]:
    return {
        "title": study_tables.group_title(group),
        "facts": study_tables.group_facts(group),
        "outcome": study_tables.outcome(group, baseline).replace(" %", "\N{NO-BREAK SPACE}%"),
        "results": study_tables.results_table(group, baseline),
        "failures": study_tables.failures(group),
        "visible": study_tables.visible_line(group),
        "rates": study_charts.success_chart(group, colors),
        "curves": study_charts.curve_charts(group, baseline, colors),
        "curve_tasks": study_charts.curve_tasks(group),
        "more": _more_tables(group),
    }


def _more_tables(group: Mapping[str, Any]) -> dict[str, Table]:
    """Returns the tables that most readers do not need, by their titles."""
    found = {
        "Success over the training": study_tables.curve_table(group),
        "Choice of the learning rate": study_tables.rates_table(group),
        "pass^k: k sampled episodes of a task are all solved": study_tables.pass_table(group),
    }
    return {title: table for title, table in found.items() if table is not None}


def _markdown_group(group: Mapping[str, Any], baseline: str) -> list[str]:
    parts = [
        f"### {markdown_text(study_tables.group_title(group))}",
        markdown_text(study_tables.group_facts(group)) + ".",
        markdown_table(study_tables.results_table(group, baseline)),
    ]
    if failed := study_tables.failures(group):
        parts += ["Failed cells:", "\n".join(f"* {markdown_text(line)}" for line in failed)]
    if line := study_tables.visible_line(group):
        parts.append(line)
    for title, table in _more_tables(group).items():
        parts += [f"{markdown_text(title)}:", markdown_table(table)]
    return parts


def _markdown_paper(summary: Mapping[str, Any], environment: str) -> list[str]:
    figures = study_tables.paper_table(environment)
    if figures is None:
        return []
    directions = study_tables.directions_table(summary, environment)
    parts = ["### Beside the paper", *([markdown_table(directions)] if directions else [])]
    return [
        *parts,
        f"The figures of the paper ({paper.SOURCE}, tables 3 and 5), not measured here:",
        markdown_table(figures),
    ]
