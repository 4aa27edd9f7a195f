"""The charts of a study's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from sad.report import overlay, plots
from sad.report.study_tables import group_title
from sad.trajectories.inspection import histogram

_COLORS = 10  # --m0 to --m9 in style.css
_BASELINE_COLOR, _TEACHER_COLOR = "var(--baseline)", "var(--teacher)"
_SCALED = {  # Fig. 2: metric to title and factor
    "success": ("success, %", 100),
    "reasoning_length": ("reasoning tokens", 1),
    "cot_match": ("CoT match, %", 100),
    "steps": ("steps", 1),
}
_SPANS = {"reason": "reasoning", "act": "action", "observe": "observation"}
_LABELS = {
    "spans": "spans: reasoning and actions, as in sad",
    "all": "all: every token after the prompt, as in token_kl",
    "random": "random: spans at random places, as in random_spans",
}


def method_colors(summary: Mapping[str, Any]) -> dict[str, str]:
    """Returns a color for each method, the same in all charts. The baseline is grey."""
    names = dict.fromkeys(method["name"] for group in summary["groups"] for method in group["methods"])
    others = [name for name in names if name != summary["baseline"]]
    colors = {name: f"var(--m{place % _COLORS})" for place, name in enumerate(others)}
    return {name: colors.get(name, _BASELINE_COLOR) for name in names}


def success_chart(group: Mapping[str, Any], colors: Mapping[str, str]) -> Markup:
    """Draws the success of each method as a bar; an empty text without results."""
    rates = []
    for method in group["methods"]:
        if found := method["metrics"].get("success"):
            rates.append(plots.Rate(method["name"], colors[method["name"]], found["mean"], found["low"], found["high"]))
    return plots.rate_chart(rates, f"Success in {group_title(group)}") if rates else Markup()


def curve_charts(group: Mapping[str, Any], baseline: str, colors: Mapping[str, str]) -> list[dict[str, Any]]:
    """Draws the success over the training, one chart per method with the baseline behind it.

    Returns:
        `name` and `color` of the method, `baseline` (its name, empty if it is not shown) and `drawing`.
    """
    curves = {method["name"]: method["curve"] for method in group["methods"] if method["curve"]}
    top = max((100 * point["high"] for curve in curves.values() for point in curve), default=0.0)
    behind = [_curve(baseline, _BASELINE_COLOR, curves[baseline])] if baseline in curves else []
    shown = [name for name in curves if name != baseline] or list(curves)
    return [
        {
            "name": name,
            "color": colors[name],
            "baseline": baseline if behind and name != baseline else "",
            "drawing": plots.line_chart(
                [*(behind if name != baseline else []), _curve(name, colors[name], curves[name])],
                x_label="training step",
                y_label="success, %",
                y_range=(0.0, max(top, 1.0)),
            ),
        }
        for name in shown
    ]


def curve_tasks(group: Mapping[str, Any]) -> str:
    """Says how many tasks the points of the curves have."""
    tasks = list(dict.fromkeys(point["tasks"] for method in group["methods"] for point in method["curve"]))
    if len(tasks) < 2:
        return "All points are of the same tasks."
    return f"The last point is of {max(tasks)} tasks, the others are of the first {min(tasks)} of these."


def size_charts(groups: Sequence[Mapping[str, Any]], colors: Mapping[str, str]) -> dict[str, Any]:
    """Draws the four metrics of the paper's Fig. 2 over the student size.

    Returns:
        `charts` (title to drawing) and `legend` (pairs of name and color).
    """
    ticks = list({group["parameters"]["student"]: group for group in groups})
    charts, drawn = {}, {}
    for metric, (title, factor) in _SCALED.items():
        series = [_over_size(name, color, groups, metric, factor) for name, color in colors.items()]
        series = [one for one in series if len(one.points) > 1]
        if not series:
            continue
        drawn |= {one.name: one.color for one in series}
        if found := [group["teacher"][metric] for group in groups if group["teacher"] and metric in group["teacher"]]:
            line = [(float(size), factor * found[0]) for size in (ticks[0], ticks[-1])]
            series.append(plots.Series("teacher", _TEACHER_COLOR, line, dashed=True))
            drawn["teacher"] = _TEACHER_COLOR
        places = [(float(size), _short(size)) for size in ticks]
        charts[title] = plots.line_chart(series, x_label="parameters of the student", y_label=title, x_ticks=places)
    return {"charts": charts, "legend": list(drawn.items())}


def lessons(exhibit: Mapping[str, Any]) -> dict[str, Any]:
    """Draws the histograms of span lengths and prepares the overlays of one lesson.

    Args:
        exhibit: The lessons of an environment, as `sad.study.exhibits.exhibits` returns them.
    """
    charts = [
        {
            "title": f"{title} spans",
            "color": f"var(--{kind})",
            "drawing": plots.histogram_chart(bins, f"var(--{kind})", f"{title} spans", "tokens per span"),
        }
        for kind, title in _SPANS.items()
        if (bins := histogram(exhibit["lengths"][kind]))
    ]
    example = exhibit["example"]
    overlays = {
        _LABELS[name]: overlay.overlay_lines(overlay.token_pieces(example["text"], example["offsets"], span_ids))
        for name, span_ids in example["span_ids"].items()
    }
    return {"trajectories": exhibit["trajectories"], "id": example["id"], "charts": charts, "overlays": overlays}


def _curve(name: str, color: str, points: Sequence[Mapping[str, float]]) -> plots.Series:
    means = [(float(point["step"]), 100 * point["mean"]) for point in points]
    return plots.Series(name, color, means, [(100 * point["low"], 100 * point["high"]) for point in points])


def _over_size(name: str, color: str, groups: Sequence[Mapping[str, Any]], metric: str, factor: float) -> plots.Series:
    points, intervals = [], []
    for group in groups:
        found = next((one["metrics"].get(metric) for one in group["methods"] if one["name"] == name), None)
        if found:
            points.append((float(group["parameters"]["student"]), factor * found["mean"]))
            intervals.append((factor * found["low"], factor * found["high"]))
    return plots.Series(name, color, points, intervals)


def _short(count: int) -> str:
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)
