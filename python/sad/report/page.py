"""Self-contained HTML pages: the report of a demo run and the page of `sad inspect`."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from sad.report import overlay, plots, table

if TYPE_CHECKING:
    import jinja2

# The agents' colors in the order of the table. Blue and red mean reasoning and action.
_COLORS = ("var(--teacher)", "var(--student)", "var(--other)", "var(--baseline)")


def demo_page(results: Mapping[str, Any], pieces: Mapping[str, list[overlay.Piece]]) -> str:
    """Renders `report.html` of a demo run.

    Args:
        results: The content of the run's `results.json`: `evaluations` (agent name to metrics), `differences` (agent
            name to the difference of SAD), `curves`
            (`teacher`: (step, loss) pairs; `reason` and `act`: (step, KL per token) pairs), `models`,
            `stages`, `hardware`, `data`, `settings`.
        pieces: A trajectory's title to the pieces of its overlay.

    Returns:
        HTML that refers to no other file.
    """
    evaluations, curves = results["evaluations"], results["curves"]
    stages = [[stage["name"], f"{stage['seconds']:.1f}", stage["made"]] for stage in results["stages"]]
    return render(
        "demo.html",
        results=results,
        results_table=table.comparison(evaluations),
        differences=table.differences(results["differences"]),
        types=table.by_type(evaluations),
        ends=table.ends(evaluations),
        rates=plots.rate_chart(
            [
                plots.Rate(name, color, metrics["success_rate"], *metrics["success_interval"])
                for (name, metrics), color in zip(evaluations.items(), _COLORS)
            ]
        ),
        distillation=plots.line_chart(
            [
                plots.Series("reasoning", "var(--reason)", plots.averaged(curves["reason"])),
                plots.Series("action", "var(--act)", plots.averaged(curves["act"])),
            ],
            x_label="step",
            y_label="KL per token, nats",
            log=True,
        ),
        imitation=plots.line_chart(
            [plots.Series("teacher", "var(--teacher)", plots.averaged(curves["teacher"]))],
            x_label="step",
            y_label="cross-entropy per token, nats",
            log=True,
        ),
        overlays={title: overlay.overlay_lines(content) for title, content in pieces.items()},
        stages=table.Table(["stage", "seconds", "result"], stages),
    )


def inspect_page(*, charts: list[dict[str, Any]], unit: str, **content: Any) -> str:
    """Renders the page of `sad inspect`.

    Args:
        charts: `name` (of a color), `label` and `bins` of each histogram of span lengths.
        unit: Unit of the lengths.
        content: The other variables of the template `inspect.html`.

    Returns:
        HTML that refers to no other file.
    """
    drawn = [
        {
            "name": chart["name"],
            "label": chart["label"],
            "drawing": plots.histogram_chart(chart["bins"], f"var(--{chart['name']})", chart["label"], f"{unit} per span"),
        }
        for chart in charts
    ]
    return render("inspect.html", charts=drawn, unit=unit, **content)


def render(template: str, **content: Any) -> str:
    """Renders a template of this package."""
    return _templates().get_template(template).render(**content)


@functools.cache
def _templates() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sad.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(name: Any) -> Markup:
    """Lets a browser break a long name after `_` and `/` and before `+`."""
    return Markup(re.sub(r"([_/](?=.)|(?<=.)(?=[+]))", r"\1<wbr>", str(escape(str(name)))))
