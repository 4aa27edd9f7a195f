"""Inline SVG charts for the pages: curves, bars with intervals, and histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup, escape

from sad.errors import InputError

if TYPE_CHECKING:
    from sad.trajectories.inspection import Bin

_WIDTH, _HEIGHT = 320, 210  # in a column of a page, a unit is about a pixel, so the text is readable on a phone
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 12, 12, 38
_CHARACTER = 6.8  # mean width of a character of the text
_HISTOGRAM_HEIGHT = 112
_LONGEST_NAME = 18


class Series(NamedTuple):
    """One curve.

    Attributes:
        name: Name in the legend.
        color: CSS color, or a CSS variable of the page.
        points: (x, y) pairs in order of x.
        intervals: (low, high) of each point, drawn as a band and as whiskers; empty for none.
        dashed: Whether the line is dashed, for a reference.
    """

    name: str
    color: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = ()
    dashed: bool = False


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


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    log: bool = False,
    y_range: tuple[float, float] | None = None,
    x_ticks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Draws curves over a common x axis.

    Args:
        series: The curves. Points that are not finite, or not positive on a log axis, are not drawn.
        x_label: Name and unit of the x axis.
        y_label: Name and unit of the y axis.
        log: Whether the y axis is logarithmic.
        y_range: Values that the y axis includes besides those of the curves.
        x_ticks: Values of the x axis with their text, for a logarithmic x axis. Empty: a linear axis with round values.

    Returns:
        An `<svg>` element.

    Raises:
        InputError: No curve has a point that can be drawn.
    """
    shown = [_drawable(item, log) for item in series]
    if not any(item.points for item in shown):
        raise InputError("series", "at least one finite point", "none", "Log at least one step.")
    axes = _Axes(shown, log, y_range, x_ticks)
    parts = axes.lines_and_labels()
    for item in shown:
        parts += _curve(item, axes)
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text x="2" y="{_HEIGHT - 6}">{escape(y_label)}</text>')
    return _svg(parts, _HEIGHT, f"{y_label} over {x_label}: {'; '.join(map(_in_words, shown))}")


def rate_chart(rates: Sequence[Rate], label: str = "Success rate") -> Markup:
    """Draws horizontal bars from 0 to 100 %, each with its interval as a whisker. Returns an `<svg>` element."""
    names = [item.name if len(item.name) <= _LONGEST_NAME else f"{item.name[: _LONGEST_NAME - 1]}…" for item in rates]
    left, right, step = round(_CHARACTER * max(map(len, names))) + 14, 46, 28
    height, scale = step * len(rates) + 26, (_WIDTH - left - right) / 100
    parts = []
    for tick in (0, 50, 100):
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 20}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 4}" text-anchor="middle">{tick} %</text>')
    for row, (name, item) in enumerate(zip(names, rates)):
        y = 6 + row * step
        low, high, end = (left + 100 * scale * value for value in (item.low, item.high, item.rate))
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{end - left:.1f}" height="18" rx="3" fill="{escape(item.color)}"/>')
        parts.append(f'<path class="whisker" d="M{low:.1f} {y + 9}H{high:.1f}M{low:.1f} {y + 4}v10M{high:.1f} {y + 4}v10"/>')
        parts.append(f'<text x="{_WIDTH - right + 8}" y="{y + 14}">{100 * item.rate:.0f} %</text>')
    words = (f"{item.name} {100 * item.rate:.0f} % ({100 * item.low:.0f} to {100 * item.high:.0f})" for item in rates)
    return _svg(parts, height, f"{label}: {', '.join(words)}")


def histogram_chart(bins: Sequence[Bin], color: str, label: str, unit: str) -> Markup:
    """Draws a histogram. The last bar includes all larger values. Returns an `<svg>` element, empty without bins."""
    if not bins:
        return Markup()
    bottom, top = _HISTOGRAM_HEIGHT, max(found.count for found in bins)
    width = (_WIDTH - 2) / len(bins)
    parts = []
    for place, found in enumerate(bins):
        height = (bottom - _TOP) * found.count / max(top, 1)
        values = f"{found.low}" if found.high == found.low else f"{found.low} to {found.high}"
        values += " and more" if place == len(bins) - 1 else ""
        parts.append(
            f'<rect x="{1 + place * width:.1f}" width="{0.88 * width:.1f}" y="{bottom - height:.1f}" '
            f'height="{height:.1f}" fill="{escape(color)}"><title>{values}: {found.count}</title></rect>'
        )
    parts.append(f'<text x="1" y="{bottom + 16}">{bins[0].low}</text>')
    parts.append(f'<text x="{_WIDTH / 2:.0f}" y="{bottom + 16}" text-anchor="middle">{escape(unit)}</text>')
    parts.append(f'<text x="{_WIDTH - 2}" y="{bottom + 16}" text-anchor="end">{bins[-1].high}+</text>')
    most = max(bins, key=lambda found: found.count)
    total = sum(found.count for found in bins)
    return _svg(parts, bottom + 22, f"{label}: {total} values, most often {most.low} to {most.high} {unit}")


class _Axes:
    """Places values in the drawing."""

    def __init__(
        self,
        series: Sequence[Series],
        log: bool,
        y_range: tuple[float, float] | None,
        x_ticks: Sequence[tuple[float, str]],
    ) -> None:
        xs = [x for item in series for x, _ in item.points]
        ys = [y for item in series for _, y in item.points]
        ys += [y for item in series for interval in item.intervals for y in interval]
        ys += y_range or ()
        self._log, self._log_x = log, bool(x_ticks)
        self._x_low, self._x_high = min(xs), max(xs)
        self._y_ticks = (_log_ticks if log else _linear_ticks)(min(ys), max(ys))
        self._y_low, self._y_high = min([*ys, *self._y_ticks]), max([*ys, *self._y_ticks])
        inside = [tick for tick in _linear_ticks(self._x_low, self._x_high) if self._x_low <= tick <= self._x_high]
        self._x_ticks = x_ticks or [(tick, f"{tick:g}") for tick in inside]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Returns the coordinates of a point."""
        up = _fraction(y, self._y_low, self._y_high, self._log)
        across = _fraction(x, self._x_low, self._x_high, self._log_x)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    def lines_and_labels(self) -> list[str]:
        """Returns the grid lines and the numbers at both axes."""
        parts = []
        for tick in self._y_ticks:
            _, y = self.place(self._x_low, tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for tick, text in self._x_ticks:
            x, _ = self.place(tick, self._y_low)
            anchor = "end" if x > _WIDTH - 2 * _RIGHT else "middle"
            parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="{anchor}">{escape(text)}</text>')
        return parts


def _fraction(value: float, low: float, high: float, log: bool) -> float:
    if high <= low:
        return 0.5
    return math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)


def _drawable(item: Series, log: bool) -> Series:
    kept = [place for place, (_, y) in enumerate(item.points) if math.isfinite(y) and (y > 0 or not log)]
    intervals = [item.intervals[place] for place in kept] if item.intervals else []
    return item._replace(points=[item.points[place] for place in kept], intervals=intervals)


def _curve(item: Series, axes: _Axes) -> list[str]:
    """Returns the band, the whiskers, the line and the points of a curve."""
    color, parts = escape(item.color), []
    ends = [(axes.place(x, low), axes.place(x, high)) for (x, _), (low, high) in zip(item.points, item.intervals)]
    if ends:
        outline = [low for low, _ in ends] + [high for _, high in reversed(ends)]
        parts.append(f'<polygon points="{_path(outline)}" fill="{color}"/>')
        parts += [f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{color}"/>' for (x, low), (_, high) in ends]
    places = [axes.place(*point) for point in item.points]
    dash = ' stroke-dasharray="5 4"' if item.dashed else ""
    parts.append(f'<polyline points="{_path(places)}" stroke="{color}"{dash}><title>{escape(item.name)}</title></polyline>')
    if ends or len(places) == 1:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{color}"/>' for x, y in places]
    return parts


def _path(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _in_words(item: Series) -> str:
    """Describes a curve by its first and last value, for readers who do not see it."""
    if not item.points:
        return f"{item.name} without values"
    first, last = item.points[0][1], item.points[-1][1]
    return f"{item.name} {last:.3g}" if len(item.points) == 1 else f"{item.name} from {first:.3g} to {last:.3g}"


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
