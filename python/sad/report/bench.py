"""The tables and the plot of a benchmark, from the rows of a run or of its CSV file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

COLUMNS = ("provider", "ms", "speed-up", "peak MiB", "retained MiB", "copy speed", "error")
_MISSING = "–"

PANELS = {  # column of the CSV: title, axis label, whether the axis is logarithmic
    "times_pytorch": ("Speed-up over PyTorch", "times faster", True),
    "peak_extra_mb": ("Peak memory beyond the inputs", "MiB; values below 1 are drawn at 1", True),
    "copy_fraction": ("Fraction of the copy bandwidth", "bytes moved per second / copy bandwidth", False),
}
OPS = {"span_kl": "From logits", "linear_span_kl": "From hidden states"}
_COLORS = {  # greys and earth tones for other libraries, bright colors for sad
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
_SMALLEST_MIB = 1.0  # a logarithmic axis cannot show 0


def machine_line(machine: Mapping[str, str]) -> str:
    """Describes the machine of a measurement in one line.

    Args:
        machine: The columns of `sadkernels.bench.record.machine_info`, among others.
    """
    commit = f", commit {machine['commit']}" if machine["commit"] else ""
    return f"{machine['processor']}, {machine['threads']} threads, PyTorch {machine['torch']}{commit}"


def table_rows(rows: Iterable[Mapping[str, object]]) -> list[list[str]]:
    """Returns the cells of `COLUMNS` for every provider that was run; `reasons` reports the others."""
    return [_cells({key: str(value) for key, value in row.items()}) for row in rows if row["status"] != "not run"]


def reasons(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """Returns one line per reason with the providers that did not run, and the cases if it is not all of their cases."""
    rows = list(rows)
    cases: dict[tuple[str, str], list[str]] = {}
    count: dict[str, int] = {}
    for row in rows:
        provider = str(row["provider"])
        count[provider] = count.get(provider, 0) + 1
        if row["status"] == "not run":
            cases.setdefault((provider, str(row["reason"])), []).append(str(row["case"]))
    merged: dict[tuple[str, str], list[str]] = {}
    for (provider, reason), names in cases.items():
        scope = "" if len(names) == count[provider] else f" ({'; '.join(names)})"
        merged.setdefault((reason, scope), []).append(provider)
    return [f"{', '.join(providers)}: {reason}{scope}" for (reason, scope), providers in merged.items()]


def draw(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draws one figure: one row of panels per op, one line per case, one mark per provider.

    Args:
        rows: The rows that `sadkernels.bench.record.read_csv` returns.
        path: The plot's file. Its suffix chooses the format.

    Raises:
        ValueError: No row was measured.
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
    if not axis.collections:  # the op has no values in this column
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
        axis.set_xlim(0, max(1.02, 1.05 * axis.get_xlim()[1]))  # above 1 if the inputs stay in a cache
    if column == "times_pytorch":
        axis.axvline(1, color="#3d3d3d", linewidth=1, zorder=1)


def _cells(row: Mapping[str, str]) -> list[str]:
    if row["status"] != "ok":
        return [row["provider"], row["status"], *([_MISSING] * 4), row["reason"]]
    warm = row.get("ms_warm") or ""
    milliseconds = _number(row["ms"]) + (f" ({_number(warm)} warm)" if warm else "")
    ratio, fraction = row.get("times_pytorch") or "", row.get("copy_fraction") or ""
    return [
        row["provider"],
        milliseconds,
        f"{float(ratio):.2f} x" if ratio else _MISSING,
        _number(row.get("peak_extra_mb") or ""),
        _number(row.get("retained_mb") or ""),
        f"{100 * float(fraction):.3g} %" if fraction else _MISSING,
        row["error"] or _MISSING,
    ]


def _number(text: str) -> str:
    if not text:
        return _MISSING
    value = float(text)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
