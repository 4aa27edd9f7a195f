"""The tables of a benchmark: cells for the terminal, from the rows of a run or of its CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

COLUMNS = ("provider", "ms", "times PyTorch", "peak MiB", "retained MiB", "of copy speed", "error")
_MISSING = "–"


def cells(rows: Iterable[Mapping[str, object]]) -> list[list[str]]:
    """One row of cells per provider that was run, in the order of `COLUMNS`; who was not run is left to `reasons`."""
    return [_cells({key: str(value) for key, value in row.items()}) for row in rows if row["status"] != "not run"]


def machine_line(about: Mapping[str, str]) -> str:
    """Where it was measured."""
    commit = f", commit {about['commit']}" if about["commit"] else ""
    return f"{about['processor']}, {about['threads']} threads, PyTorch {about['torch']}{commit}"


def reasons(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """A line for each provider that was not run: why, and on which cases if not on all that it has."""
    rows = list(rows)
    cases: dict[tuple[str, str], list[str]] = {}
    count: dict[str, int] = {}
    for row in rows:
        provider = str(row["provider"])
        count[provider] = count.get(provider, 0) + 1
        if row["status"] == "not run":
            cases.setdefault((provider, str(row["reason"])), []).append(str(row["case"]))
    merged: dict[tuple[str, str], list[str]] = {}
    for (provider, reason), where in cases.items():
        scope = "" if len(where) == count[provider] else f" ({'; '.join(where)})"
        merged.setdefault((reason, scope), []).append(provider)
    return [f"{', '.join(providers)}: {reason}{scope}" for (reason, scope), providers in merged.items()]


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
        row["error"],
    ]


def _number(text: str) -> str:
    if not text:
        return _MISSING
    value = float(text)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
