"""The cells of a study. A cell trains one student with one method and seed and evaluates it."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import transformers

import sad
from sad import files
from sad.agents.evaluate import EpisodeMeasures, measure_episode
from sad.agents.metrics import cot_match_rates
from sad.model_parts import model_digest
from sad.study.assets import Assets, digest, identity
from sad.study.config import Study, as_plain
from sad.study.labels import relabel
from sad.study.training import train
from sad.training.difficulty import read_rows
from sad.trajectories.spans import is_supervised
from sad.trajectories.trajectory import Trajectory

SELECT, TEST = "select", "test"
RESULT, TIMING, FAILED, LOG = "result.json", "timing.json", "failed.json", "log.txt"
_DAMAGED = "Delete the folder of this cell and run the study again."


@dataclass(frozen=True)
class Cell:
    """One training of a study with its evaluation.

    Attributes:
        environment: Name of the environment.
        student: Name of the student.
        method: Name of the method.
        seed: Seed of weights, batches and masks.
        learning_rate: Peak learning rate.
        panel: "select": only the tasks that choose the learning rate are played; "test": the test tasks.
    """

    environment: str
    student: str
    method: str
    seed: int
    learning_rate: float
    panel: str

    def spec(self, study: Study) -> dict[str, Any]:
        """Returns everything that the result depends on, except the versions of the libraries."""
        method = study.method(self.method)
        plain = {
            "environment": identity(study.environments[self.environment]),
            "student": as_plain(study.students[self.student]),
            "method": {"labels": method.labels, "rollouts": method.rollouts, "settings": dict(method.settings)},
            "training": as_plain(study.training),
            "seed": self.seed,
            "learning_rate": self.learning_rate,
            "panel": self.panel,
            "threads": study.threads,
        }
        if self.panel == TEST:
            plain |= {"evaluations": study.evaluations, "curve_tasks": study.curve_tasks}
            plain |= {"samples": study.samples, "temperature": study.temperature if study.samples else None}
        return plain

    def name(self, study: Study) -> str:
        """Returns the name of the cell's folder. It follows from the configuration of the cell alone."""
        parts = (self.panel, self.environment, self.student, self.method, f"seed{self.seed}", f"lr{self.learning_rate:g}")
        return "--".join([*parts, digest(self.spec(study))])


class Results:
    """The results of cells in the folder of a study."""

    def __init__(self, folder: Path, study: Study) -> None:
        self.folder, self._study = folder, study

    def place(self, cell: Cell) -> Path:
        """Returns the folder of a cell."""
        return self.folder / "cells" / cell.name(self._study)

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """Returns the result of a cell, or None if it is not finished.

        Raises:
            ChecksumError: The file was damaged.
        """
        path = self.place(cell) / RESULT
        return files.read_record(path, _DAMAGED) if path.exists() else None

    def timing(self, cell: Cell) -> dict[str, Any] | None:
        """Returns the timing of a finished cell, or None."""
        path = self.place(cell) / TIMING
        return files.read_record(path, _DAMAGED) if path.exists() else None

    def failure(self, cell: Cell) -> str | None:
        """Returns the last line of a cell that failed, or None."""
        path = self.place(cell) / FAILED
        return files.read_record(path, _DAMAGED)["message"] if path.exists() else None


def combinations(study: Study) -> Iterator[tuple[str, str, str, tuple[int, ...]]]:
    """Yields environment, student, method and seeds of the blocks of the grid, each combination once."""
    seeds: dict[tuple[str, str, str], dict[int, None]] = {}
    for block in study.grid:
        environments, students = block.environments or tuple(study.environments), block.students or tuple(study.students)
        for key in product(environments, students, block.methods):
            seeds.setdefault(key, {}).update(dict.fromkeys(block.seeds or study.seeds))
    yield from ((*key, tuple(found)) for key, found in seeds.items())


def selection_cells(study: Study, environment: str, student: str, method: str) -> list[Cell]:
    """Returns the cells from which the learning rate of a method is chosen: one for each rate, or none for one rate."""
    if len(study.learning_rates) < 2:
        return []
    seed = study.selection_seed
    return [Cell(environment, student, method, seed, rate, SELECT) for rate in study.learning_rates]


def choose_rate(study: Study, results: Results, environment: str, student: str, method: str) -> float | None:
    """Returns the learning rate of a method, or None if a cell that it depends on is not finished.

    It is the rate with the most solved tasks of the panel `select`; of equal ones, the smallest.
    """
    cells = selection_cells(study, environment, student, method)
    if not cells:
        return study.learning_rates[0] if study.learning_rates else study.training.learning_rate
    found = [results.read(cell) for cell in cells]
    if any(one is None for one in found):
        return None
    solved = {cell.learning_rate: one["points"][-1]["success"].count("1") for cell, one in zip(cells, found)}
    return min(solved, key=lambda rate: (-solved[rate], rate))


def all_cells(study: Study, results: Results) -> tuple[list[Cell], int]:
    """Returns the cells that are known so far, and the number of test cells whose learning rate is not chosen yet."""
    known: list[Cell] = []
    waiting = 0
    for environment, student, method, _ in combinations(study):
        known += selection_cells(study, environment, student, method)
    for environment, student, method, seeds in combinations(study):
        rate = choose_rate(study, results, environment, student, method)
        if rate is None:
            waiting += len(seeds)
        else:
            known += [Cell(environment, student, method, seed, rate, TEST) for seed in seeds]
    return known, waiting


def run_cell(study: Study, folder: Path, cell: Cell) -> None:
    """Trains and evaluates a cell and writes `result.json`, `timing.json` and the played trajectories into its folder.

    The same cell gives the same `result.json` on one machine. A finished cell is not run again.

    Raises:
        InputError: The shared files do not exist yet, or another process runs the cell.
    """
    results = Results(folder, study)
    place = results.place(cell)
    assets = Assets(folder, cell.environment, study.environments[cell.environment])
    assets.check_made({cell.student: study.students[cell.student]})
    torch.set_num_threads(study.threads)
    with files.FolderLock(place):
        if results.read(cell) is None:
            files.remove_partials(place)
            result, timing = _Run(study, assets, cell, place).run()
            files.write_record(place / TIMING, timing, indent=1)
            files.write_record(place / RESULT, result)  # last: a cell with a result is complete


class _Run:
    """One run of a cell."""

    def __init__(self, study: Study, assets: Assets, cell: Cell, place: Path) -> None:
        self._study, self._assets, self._cell, self._place = study, assets, cell, place
        self._config = study.environments[cell.environment]
        self._teacher, self._tokenizer = assets.teacher()
        self._model = assets.student(cell.student, study.students[cell.student], self._tokenizer, cell.seed)
        self._env, self._tasks = assets.panel(self._config.test if cell.panel == TEST else self._config.select)
        self._points: list[dict[str, Any]] = []
        self._played = 0.0

    def run(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the result and the timing."""
        study, cell, method = self._study, self._cell, self._study.method(self._cell.method)
        lessons = self._assets.lessons(self._tokenizer)
        examples = relabel(lessons, method.labels, cell.seed)
        trained = train(
            self._model,
            self._teacher if method.uses_teacher else None,
            examples,
            study.training,
            settings=method.settings,
            learning_rate=cell.learning_rate,
            seed=cell.seed,
            max_length=self._config.max_length,
            rollouts=self._assets.rollouts(method.rollouts, self._tokenizer),
            points=self._steps()[:-1],
            on_point=self._evaluate,
        )
        final = self._evaluate(study.training.steps)
        result = {
            "cell": {"name": cell.name(study), **vars(cell)},
            "spec": cell.spec(study),
            "parameters": {"student": self._model.num_parameters(), "teacher": self._teacher.num_parameters()},
            "trajectories": len(examples),
            "data_sha256": read_rows(lessons, self._config.max_length).digest,
            "teacher_sha256": model_digest(self._teacher),
            "curve": trained.curve,
            "points": self._points,
        }
        if cell.panel == TEST:
            result |= {"tasks": [task.id for task in self._tasks], **self._measures(final)}
            if study.samples:
                result["sampled_successes"] = self._sample()
        return result, self._timing(trained.seconds, examples)

    def _steps(self) -> list[int]:
        """Returns the steps after which the student is evaluated."""
        count = self._study.evaluations if self._cell.panel == TEST else 1
        return [round(self._study.training.steps * (number + 1) / count) for number in range(count)]

    def _evaluate(self, step: int) -> list[Trajectory]:
        start = time.perf_counter()
        last = step == self._study.training.steps
        count = None if last else self._study.curve_tasks
        played = self._assets.play(self._model, self._tokenizer, self._env, self._tasks[:count])
        sad.write_jsonl(self._place / f"played-{step}.jsonl.gz", played, overwrite=True)
        self._points.append({"step": step, "success": "".join(str(int(one.success)) for one in played)})
        self._played += time.perf_counter() - start
        return played

    def _measures(self, played: Sequence[Trajectory]) -> dict[str, Any]:
        """Returns `measures`, one value per task for every metric of the paper, and `teacher`, the teacher's means.

        Tasks without teacher reasoning have no CoT match.
        """
        own = [measure_episode(one, self._tokenizer) for one in played]
        reference = {one.id: one for one in sad.read_jsonl(self._assets.reference_path)}
        teacher = [measure_episode(reference[one.id], self._tokenizer) for one in own]
        measures = {
            "success": [int(one.success) for one in own],
            "score": [round(_score(one), 4) for one in own],
            "reasoning_length": [len(one.reasoning) for one in own],
            "cot_match": [_match(one.reasoning, other.reasoning) for one, other in zip(own, teacher)],
            "steps": [one.steps for one in own],
            "actions": [one.actions for one in own],
            "invalid_actions": [one.invalid_actions for one in own],
        }
        means = {
            "success": mean(one.success for one in teacher),
            "reasoning_length": mean(len(one.reasoning) for one in teacher),
            "steps": mean(one.steps for one in teacher),
        }
        return {"measures": measures, "teacher": means}

    def _sample(self) -> list[int]:
        """Returns the number of solved samples of each test task."""
        start, study = time.perf_counter(), self._study
        options = {"samples": study.samples, "temperature": study.temperature}
        played = self._assets.play(self._model, self._tokenizer, self._env, self._tasks, **options)
        sad.write_jsonl(self._place / "sampled.jsonl.gz", played, overwrite=True)
        self._played += time.perf_counter() - start
        count = len(self._tasks)
        return [sum(bool(one.success) for one in played[place::count]) for place in range(count)]

    def _timing(self, seconds: float, examples: Sequence[dict]) -> dict[str, Any]:
        study, training = self._study, self._study.training
        tokens = (
            mean(len(one["input_ids"]) for one in examples) * training.steps * training.batch_size * training.accumulation
        )
        observe = study.method(self._cell.method).settings.get("lambda_observe", 0.0) > 0
        supervised = sum(bool(is_supervised(kind, observe)) for one in examples for kind in one["span_ids"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
        return {
            "training_seconds": round(seconds, 1),
            "play_seconds": round(self._played, 1),
            "tokens_per_second": round(tokens / seconds),
            "supervised_share": round(supervised / sum(len(one["input_ids"]) for one in examples), 4),
            "peak_memory_bytes": peak,
            "threads": study.threads,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "versions": {"sad": sad.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        }


def _match(student: list[int], teacher: list[int]) -> float | None:
    """Returns the CoT match of one task, or None if the teacher did not reason."""
    found = cot_match_rates([student], [teacher])
    return round(found[0], 4) if found else None


def _score(episode: EpisodeMeasures) -> float:
    """Returns the score of an environment that has one (WebShop's reward, HotPotQA's F1), else success."""
    names = ("score", "f1")
    return float(next((episode.env_metrics[name] for name in names if name in episode.env_metrics), episode.success))
