"""Inline SVG charts for the pages: curves over steps, and rates with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from sad.errors import InputError

_WIDTH, _HEIGHT = 560, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 38


class Series(NamedTuple):
    """One curve.

    Attributes:
        name: Name in the legend.
        color: CSS color, or a CSS variable of the page.
        points: (x, y) pairs in order of x.
    """

    name: str
    color: str
    points: Sequence[tuple[float, float]]


class Rate(NamedTuple):
    """One bar: a rate in [0, 1] with the interval from `low` to `high`."""

    name: str
    color: str
    rate: float
    low: float
    high: float


def averaged(points: Sequence[tuple[float, float]], count: int = 120) -> list[tuple[float, float]]:
    """Returns at most `count` points, each the mean of neighboring points, to smooth a curve of single steps."""
    size = math.ceil(len(points) / count) if points else 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, log: bool = False) -> Markup:
    """Draws curves over a common x axis.

    Args:
        series: The curves. Points that are not finite, or not positive on a log axis, are not drawn.
        x_label: Name and unit of the x axis.
        y_label: Name and unit of the y axis.
        log: Whether the y axis is logarithmic.

    Returns:
        An `<svg>` element.

    Raises:
        InputError: No curve has a point that can be drawn.
    """
    drawn = [
        item._replace(points=[(x, y) for x, y in item.points if math.isfinite(y) and (y > 0 or not log)]) for item in series
    ]
    xs = [x for item in drawn for x, _ in item.points]
    ys = [y for item in drawn for _, y in item.points]
    if not ys:
        raise InputError("series", "at least one finite point", "none", "Log at least one step.")
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    x_ticks = [tick for tick in _linear_ticks(x_low, x_high) if x_low <= tick <= x_high]
    y_ticks = (_log_ticks if log else _linear_ticks)(min(ys), max(ys))
    y_low, y_high = min([*ys, *y_ticks]), max([*ys, *y_ticks])

    def place(x: float, y: float) -> tuple[float, float]:
        up = math.log(y / y_low) / math.log(y_high / y_low) if log else (y - y_low) / (y_high - y_low)
        across = (x - x_low) / (x_high - x_low)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x, _ = place(tick, y_low)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    for item in drawn:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in item.points))
        parts.append(
            f'<polyline points="{path}" stroke="{escape(item.color)}"><title>{escape(item.name)}</title></polyline>'
        )
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text x="{_LEFT - 44}" y="{_HEIGHT - 6}">{escape(y_label)}</text>')
    return _svg(parts, _HEIGHT, f"{y_label} over {x_label}: {', '.join(item.name for item in series)}")


def rate_chart(rates: Sequence[Rate]) -> Markup:
    """Draws horizontal bars from 0 to 100 %, each with its interval as a whisker. Returns an `<svg>` element."""
    left, right, step = 150, 60, 34
    height, scale = step * len(rates) + 26, (_WIDTH - 150 - 60) / 100
    parts = []
    for tick in (0, 25, 50, 75, 100):
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 20}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 4}" text-anchor="middle">{tick} %</text>')
    for row, item in enumerate(rates):
        y = 8 + row * step
        low, high, end = (left + 100 * scale * value for value in (item.low, item.high, item.rate))
        parts.append(f'<text x="{left - 10}" y="{y + 15}" text-anchor="end">{escape(item.name)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{end - left:.1f}" height="20" rx="3" fill="{escape(item.color)}"/>')
        parts.append(
            f'<path class="whisker" d="M{low:.1f} {y + 10}H{high:.1f}M{low:.1f} {y + 5}v10M{high:.1f} {y + 5}v10"/>'
        )
        parts.append(f'<text x="{_WIDTH - right + 10}" y="{y + 15}">{100 * item.rate:.0f} %</text>')
    return _svg(parts, height, "Success rate: " + ", ".join(f"{item.name} {item.rate:.0%}" for item in rates))


def _svg(parts: Sequence[str], height: int, label: str) -> Markup:
    body = "\n".join(parts)
    return Markup(
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">\n{body}\n</svg>'
    )


def _linear_ticks(low: float, high: float) -> list[float]:
    """Returns three to seven round numbers, the first not above `low` and the last not below `high`."""
    if high <= low:
        high = low + 1
    step = 10 ** math.floor(math.log10(high - low))
    step *= next(factor for factor in (0.2, 0.5, 1, 2) if (high - low) / (step * factor) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(tick * step, 12) for tick in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Returns powers of ten around the data, with 2 and 5 times these if that gives at most eight ticks."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    below = max((tick for tick in ticks if tick <= low * 1.0001), default=ticks[0])
    above = min((tick for tick in ticks if tick >= high * 0.9999), default=ticks[-1])
    if below == above:  # a flat curve whose value is a tick
        above *= 10
    inside = [tick for tick in ticks if below <= tick <= above * 1.0001]
    return inside if len(inside) <= 8 else [10.0**power for power in range(first, last + 1)]
