"""`report.html` of a demo run: one self-contained page made from what the run wrote down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sad.report import overlay, plots, table

# agent's colour by its place in the table; blue and red belong to reasoning and action
_COLORS = ("var(--teacher)", "var(--student)", "var(--before)")


def demo_page(results: Mapping[str, Any], pieces: Mapping[str, list[overlay.Piece]]) -> str:
    """Renders the page.

    Args:
        results: What `results.json` of the run holds: `evaluations` (agent to figures), `curves`
            (`teacher`: (step, loss) pairs; `reason` and `act`: (step, KL per token) pairs), `models`,
            `stages`, `hardware`, `data`, `settings`.
        pieces: Title of a trajectory to its overlay.

    Returns:
        HTML without any reference to other files.
    """
    import jinja2

    evaluations, curves = results["evaluations"], results["curves"]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sad.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = table.percent
    return environment.get_template("demo.html").render(
        results=results,
        table=[table.COLUMNS, table.comparison(evaluations)],
        details=[table.by_type(evaluations), table.ends(evaluations)],
        rates=plots.rate_chart(
            [
                plots.Rate(name, color, figures["success_rate"], *figures["success_interval"])
                for (name, figures), color in zip(evaluations.items(), _COLORS)
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
        overlays={title: overlay.html_overlay(list(content)) for title, content in pieces.items()},
        overlay_style=overlay.html_style(),
        stages=[[stage["name"], f"{stage['seconds']:.1f}", stage["made"]] for stage in results["stages"]],
    )
