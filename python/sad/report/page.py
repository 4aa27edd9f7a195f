"""Self-contained HTML pages: the report of a demo run and the page of `sad inspect`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sad.report import overlay, plots, table

if TYPE_CHECKING:
    import jinja2

# The agents' colors in the order of the table. Blue and red mean reasoning and action.
_COLORS = ("var(--teacher)", "var(--student)", "var(--before)")


def demo_page(results: Mapping[str, Any], pieces: Mapping[str, list[overlay.Piece]]) -> str:
    """Renders `report.html` of a demo run.

    Args:
        results: The content of the run's `results.json`: `evaluations` (agent name to metrics), `curves`
            (`teacher`: (step, loss) pairs; `reason` and `act`: (step, KL per token) pairs), `models`,
            `stages`, `hardware`, `data`, `settings`.
        pieces: A trajectory's title to the pieces of its overlay.

    Returns:
        HTML that refers to no other file.
    """
    evaluations, curves = results["evaluations"], results["curves"]
    overlay_macros = _templates().get_template("overlay.html").module
    return (
        _templates()
        .get_template("demo.html")
        .render(
            results=results,
            table=[table.COLUMNS, table.comparison(evaluations)],
            details=[table.by_type(evaluations), table.ends(evaluations)],
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
            overlays={title: overlay_macros.overlay(overlay.overlay_lines(content)) for title, content in pieces.items()},
            overlay_style=overlay_macros.style(),
            stages=[[stage["name"], f"{stage['seconds']:.1f}", stage["made"]] for stage in results["stages"]],
        )
    )


def inspect_page(**content: Any) -> str:
    """Renders the page of `sad inspect`.

    Args:
        content: The variables of the template `inspect.html`.

    Returns:
        HTML that refers to no other file.
    """
    return _templates().get_template("inspect.html").render(**content)


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
    environment.filters["percent"] = table.percent
    return environment
