"""Seconds, tokens/s, memory and cost of the cells of a study."""

from __future__ import annotations

from statistics import mean
from typing import Any

from sad.study.cells import TEST, Results, all_cells
from sad.study.config import Study


def timings(study: Study, results: Results) -> dict[str, Any]:
    """Returns the measured timings of the finished cells.

    They depend on the machine and on what else ran on it, so they are not part of the summary.

    Returns:
        `seconds`: sum over all cells; `cost`: its price, or None; `devices`; `versions`; `methods`: one per environment,
        student and method with the means of its test cells, `training_seconds`, `tokens_per_second`, `peak_memory_bytes`.
    """
    cells, _ = all_cells(study, results)
    found = {cell: timing for cell in cells if (timing := results.timing(cell)) is not None}
    seconds = sum(one["training_seconds"] + one["play_seconds"] for one in found.values())
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for cell, timing in found.items():
        if cell.panel == TEST:
            groups.setdefault((cell.environment, cell.student, cell.method), []).append(timing)
    names = ("training_seconds", "tokens_per_second", "peak_memory_bytes")
    return {
        "seconds": seconds,
        "cost": None if study.price_per_hour is None else seconds / 3600 * study.price_per_hour,
        "devices": sorted({one["device"] for one in found.values()}),
        "versions": next(iter(found.values()))["versions"] if found else {},
        "methods": [
            {"environment": key[0], "student": key[1], "method": key[2]}
            | {name: mean(one[name] for one in group) for name in names}
            for key, group in groups.items()
        ],
    }
