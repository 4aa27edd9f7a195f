"""The picture of a benchmark, from its CSV alone: speed-up over PyTorch, memory, fraction of the copy speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

PANELS = {  # column of the CSV: title, unit of the axis, logarithmic
    "times_pytorch": ("Speed-up over PyTorch", "times faster", True),
    "peak_extra_mb": ("Extra memory at the peak", "MiB; 1 or less is drawn at 1", True),
    "copy_fraction": ("Fraction of the copy speed", "bytes that had to move, per second, by those of a copy", False),
}
OPS = {"span_kl": "From logits", "linear_span_kl": "From hidden states"}
_COLORS = {  # peers in greys and earth tones, ours in colours
    "pytorch": "#3d3d3d",
    "pytorch-gathered": "#8a8a8a",
    "pytorch-compiled": "#b98b5e",
    "liger": "#7d5a9b",
    "liger-gathered": "#b59ccb",
    "trl": "#c9a400",
    "sad-reference": "#9db8c9",
    "sad-cpu": "#0b6fb8",
    "sad-triton": "#0b6fb8",
    "sad-cuda": "#1a9850",
}
_SMALLEST_MIB = 1.0  # nothing has no place on a logarithmic axis


def draw(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draws one figure: a row of panels per op, in each a line per case with a mark per provider.

    Args:
        rows: As `sadkernels.bench.record.read_csv` returns them.
        path: A picture file; its ending says which kind.

    Raises:
        ValueError: Nothing was measured.
    """
    from matplotlib.figure import Figure

    measured = [row for row in rows if row["status"] == "ok"]
    if not measured:
        raise ValueError("no provider was measured")
    ops = [op for op in OPS if any(row["op"] == op for row in measured)]
    cases = {op: list(dict.fromkeys(row["case"] for row in measured if row["op"] == op)) for op in ops}
    heights = [0.34 * len(cases[op]) + 1.1 for op in ops]
    figure = Figure(figsize=(16, sum(heights) + 1.3), dpi=110, layout="constrained")
    axes = figure.subplots(len(ops), len(PANELS), squeeze=False, gridspec_kw={"height_ratios": heights})
    for op, line in zip(ops, axes):
        for axis, column in zip(line, PANELS):
            _panel(axis, [row for row in measured if row["op"] == op], cases[op], column)
        line[0].set_yticks(range(len(cases[op])), cases[op], fontsize=9)
        line[0].set_title(OPS[op], fontsize=11, fontweight="bold", loc="left", x=-0.55)
    handles = {}
    for axis in axes.flat:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=7, frameon=False, fontsize=9)
    first = measured[0]
    figure.suptitle(f"{first['processor']}, PyTorch {first['torch']}, commit {first['commit'] or 'unknown'}", fontsize=11)
    figure.savefig(path)


def _panel(axis, rows: Sequence[Mapping[str, str]], cases: Sequence[str], column: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    title, unit, log = PANELS[column]
    for provider in dict.fromkeys(row["provider"] for row in rows):
        points = [(row[column], cases.index(row["case"])) for row in rows if row["provider"] == provider and row[column]]
        if points:
            values = [max(float(value), _SMALLEST_MIB) if column == "peak_extra_mb" else float(value) for value, _ in points]
            in_place = provider.endswith("-inplace")
            color = _COLORS.get(provider.removesuffix("-inplace"), "#000000")
            axis.scatter(
                values,
                [place for _, place in points],
                s=58,
                marker="D" if in_place else "o",
                facecolors="white" if in_place else color,
                edgecolors=color,
                linewidths=1.6,
                label=provider,
                zorder=3,
            )
    axis.set_title(title, fontsize=11)
    axis.set_xlabel(unit, fontsize=9)
    axis.set_ylim(len(cases) - 0.5, -0.5)
    axis.set_yticks(range(len(cases)), [""] * len(cases))
    axis.grid(axis="y", color="#e3e3e3", zorder=0)
    axis.spines[["top", "right"]].set_visible(False)
    if not axis.collections:  # no such figure for this op
        axis.set_axis_off()
        axis.set_title("")
        return
    axis.grid(axis="x", color="#f0f0f0", zorder=0)
    if log:
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
    else:
        axis.set_xlim(0, max(1.02, 1.05 * axis.get_xlim()[1]))  # what stays in a cache can be faster than a copy
    if column == "times_pytorch":
        axis.axvline(1, color="#3d3d3d", linewidth=1, zorder=1)
