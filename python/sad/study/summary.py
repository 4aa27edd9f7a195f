"""Collects the results of a study into `summary.json`, which depends on the results alone, and never on timings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sad.study.cells import TEST, Cell, Results, choose_rate, combinations, selection_cells
from sad.study.config import Study
from sad.study.statistics import Estimate, difference, estimate, holm, pass_hat_k, smallest_visible

METRICS = ("success", "score", "reasoning_length", "cot_match", "steps", "actions", "invalid_actions")


def summarize(study: Study, results: Results) -> dict[str, Any]:
    """Returns the summary of a study, finished or not.

    Returns:
        A dictionary that `json.dumps` accepts:

        * `name`, `baseline`, `training_steps`, `seeds`.
        * `groups`: one per environment and student, with `environment`, `student`, `init`, `parameters` (student, teacher),
          `teacher` (success, reasoning length and steps of the teacher on the test tasks), `tasks` (number) and `methods`.
        * Each method has `name`, `text`, `source`, `state` ("done", "part", "failed", "open"), `learning_rate`,
          `selection` (solved tasks of the select panel per learning rate), `seeds` (finished), `failed` (seed and message),
          `metrics` (mean, low, high), `difference` to the baseline in success (mean, low, high, p, p_holm, seeds, visible)
          or None, `curve` (step, tasks, mean, low, high), `losses` (step and mean losses) and `pass_k`.
    """
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    tables: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for environment, student, method, seeds in combinations(study):
        group = groups.setdefault((environment, student), _group(study, environment, student))
        found = _Method(study, results, environment, student, method, seeds)
        group["methods"].append(found.summary())
        tables[environment, student, method] = found.finished
        for one in found.finished.values():
            group |= {"parameters": one["parameters"], "tasks": len(one["tasks"]), "teacher": one["teacher"]}
    for (environment, student), group in groups.items():
        baseline = tables.get((environment, student, study.baseline), {})
        for method in group["methods"]:
            own = tables[environment, student, method["name"]]
            method["difference"] = None if method["name"] == study.baseline else _difference(own, baseline)
        compared = {one["name"]: one["difference"]["p"] for one in group["methods"] if one["difference"]}
        adjusted = holm(compared)
        for method in group["methods"]:
            if method["difference"]:
                method["difference"]["p_holm"] = adjusted[method["name"]]
    return {
        "name": study.name,
        "baseline": study.baseline,
        "training_steps": study.training.steps,
        "seeds": list(study.seeds),
        "groups": list(groups.values()),
    }


def _group(study: Study, environment: str, student: str) -> dict[str, Any]:
    return {
        "environment": environment,
        "student": student,
        "init": study.students[student].init,
        "parameters": None,
        "teacher": None,
        "tasks": None,
        "methods": [],
    }


class _Method:
    """The results of one method for one student in one environment."""

    def __init__(
        self, study: Study, results: Results, environment: str, student: str, method: str, seeds: Sequence[int]
    ) -> None:
        self._study, self._results, self._seeds = study, results, seeds
        self._key = (environment, student, method)
        self._rate = choose_rate(study, results, *self._key)
        self._selection = selection_cells(study, *self._key)
        cells = [] if self._rate is None else [Cell(*self._key, seed, self._rate, TEST) for seed in seeds]
        read = {cell: results.read(cell) for cell in cells}
        self.finished = {cell.seed: one for cell, one in read.items() if one is not None}
        self._failed = [
            (cell, message)
            for cell in [*self._selection, *cells]
            if results.read(cell) is None and (message := results.failure(cell)) is not None
        ]

    def summary(self) -> dict[str, Any]:
        method = self._study.method(self._key[2])
        metrics = {name: _as_dict(found) for name in METRICS if (found := self._metric(name)) is not None}
        return {
            "name": self._key[2],
            "text": method.text,
            "source": method.source,
            "state": self._state(),
            "learning_rate": self._rate,
            "selection": self._solved_of_selection(),
            "seeds": sorted(self.finished),
            "failed": [{"seed": cell.seed, "panel": cell.panel, "message": message} for cell, message in self._failed],
            "metrics": metrics,
            "curve": self._curve(),
            "losses": self._losses(),
            "pass_k": self._pass_k(),
        }

    def _state(self) -> str:
        if len(self.finished) == len(self._seeds):
            return "done"
        return "failed" if self._failed else "part" if self.finished else "open"

    def _solved_of_selection(self) -> dict[str, int | None]:
        found = {cell.learning_rate: self._results.read(cell) for cell in self._selection}
        return {f"{rate:g}": None if one is None else one["points"][-1]["success"].count("1") for rate, one in found.items()}

    def _metric(self, name: str) -> Estimate | None:
        if not self.finished or (
            any(None in one["measures"][name] for one in self.finished.values()) and name != "cot_match"
        ):
            return None
        table = _table(self.finished, name)
        return None if np.isnan(table).all() else estimate(table)

    def _curve(self) -> list[dict[str, float]]:
        if not self.finished:
            return []
        curves = [one["points"] for one in self.finished.values()]
        points = []
        for same_step in zip(*curves):
            table = np.array([[int(digit) for digit in point["success"]] for point in same_step], dtype=np.float64)
            points.append({"step": same_step[0]["step"], "tasks": table.shape[1], **_as_dict(estimate(table))})
        return points

    def _losses(self) -> list[dict[str, float]]:
        means = []
        for same_step in zip(*(one["curve"] for one in self.finished.values())):
            names = [name for name in same_step[0] if name != "step"]
            values = {name: float(np.mean([point[name] for point in same_step])) for name in names}
            means.append({"step": same_step[0]["step"], **values})
        return means

    def _pass_k(self) -> list[float] | None:
        if not self._study.samples or not self.finished:
            return None
        each = [pass_hat_k(one["sampled_successes"], self._study.samples) for one in self.finished.values()]
        return [float(value) for value in np.mean(each, axis=0)]


def _table(finished: dict[int, dict[str, Any]], name: str) -> NDArray:
    """Returns (seeds, tasks) values of a metric; NaN if a task has none."""
    rows = [finished[seed]["measures"][name] for seed in sorted(finished)]
    return np.array([[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64)


def _difference(own: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
    """Compares the successes of two methods on the seeds that both have finished."""
    seeds = sorted(set(own) & set(baseline))
    if not seeds:
        return None
    tables = [_table({seed: one[seed] for seed in seeds}, "success") for one in (own, baseline)]
    found = difference(*tables)
    return {**found._asdict(), "seeds": len(seeds), "visible": smallest_visible(*tables)}


def _as_dict(found: Estimate) -> dict[str, float]:
    return found._asdict()
