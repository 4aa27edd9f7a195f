"""The stages of the demo, from the scripted expert to the evaluation of the distilled students."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import sad
from sad.agents.collect import collect_expert
from sad.agents.evaluate import evaluate
from sad.demo.config import DemoOptions
from sad.demo.imitation import imitate
from sad.demo.jobs import BEFORE, METHODS, distill, folder_name, household, play, save
from sad.demo.progress import Stages
from sad.demo.workers import Workers
from sad.envs.protocol import Env
from sad.errors import InputError
from sad.files import write_file
from sad.report.overlay import token_pieces
from sad.report.page import demo_page
from sad.scratch.models import build_decoder, train_tokenizer
from sad.study.statistics import difference
from sad.trajectories.encode import encode_with_segmentation
from sad.trajectories.trajectory import Trajectory


def check_folder(out: Path) -> None:
    """Checks that a folder is new or empty.

    Raises:
        InputError: `out` is a file, or a folder that is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            "out", "a new or empty folder", f"{str(out)!r}, which is not empty", "Choose another with --out, or remove it."
        )


def run_demo(options: DemoOptions, stages: Stages) -> dict[str, Any]:
    """Runs all stages of the demo.

    Args:
        options: The options of the command.
        stages: Shows the progress and measures the time of each stage.

    Returns:
        The content of `results.json` in the folder of the run.

    Raises:
        InputError: The folder is not empty.
    """
    check_folder(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    return _Demo(options, stages).run()


class _Demo:
    """A demo run. Its methods from `run_expert` to `run_agents` are the stages, in this order."""

    def __init__(self, options: DemoOptions, stages: Stages) -> None:
        self.out, self.config, self.stages = options.out, options.config, stages
        self.workers = Workers(0)

    def run(self) -> dict[str, Any]:
        config, seed = self.config, self.config.seed
        train_env = household(config, "train")
        expert = self.run_expert(train_env)
        tokenizer, corpus = self.encode_expert(expert)
        teacher = build_decoder(config.teacher, tokenizer, config.context, seed)
        student = build_decoder(config.student, tokenizer, config.context, seed + 1)
        save(self.out, BEFORE, student, tokenizer)
        teacher_curve = self.train_teacher(teacher, tokenizer, corpus.examples)
        with Workers(config.processes) as self.workers:
            collected = self.run_teacher(expert)
            solved = [trajectory for trajectory in collected if trajectory.success]
            lessons = solved or expert[: config.teacher_tasks]
            logs = self.distill(lessons, tokenizer)
            episodes = self.run_agents()

        results = {
            "version": sad.__version__,
            "settings": config._asdict() | {"teacher": asdict(config.teacher), "student": asdict(config.student)},
            "hardware": _hardware(),
            "models": {
                name: {"parameters": model.num_parameters()} for name, model in (("teacher", teacher), ("student", student))
            },
            "data": {
                "expert_trajectories": len(expert),
                "teacher_trajectories": len(collected),
                "distilled_trajectories": len(lessons),
                "distilled_from": "teacher" if solved else "expert",
                "unseen_tasks": config.unseen_tasks,
            },
            "evaluations": {
                name: evaluate(trajectories, tokenizer, reference=episodes["teacher"], seed=seed)
                for name, trajectories in episodes.items()
            },
            "differences": _differences(episodes, seed),
            "curves": {
                "teacher": list(enumerate(teacher_curve, start=1)),
                "reason": [(entry["step"], entry["loss_reason"]) for entry in logs["SAD"]],
                "act": [(entry["step"], entry["loss_act"]) for entry in logs["SAD"]],
            },
            "stages": self.stages.records,
            "seconds": self.stages.seconds,
        }
        write_file(self.out / "results.json", json.dumps(results, indent=1) + "\n")
        self.write_report(results, lessons, tokenizer)
        return results

    def run_expert(self, env: Env) -> list[Trajectory]:
        """Collects trajectories of the scripted expert."""
        count = self.config.expert_tasks
        with self.stages.stage("run the expert on training tasks", count) as stage:
            expert = collect_expert(env, env.tasks[:count], on_trajectory=lambda trajectory: stage.advance())
            sad.write_jsonl(self.out / "expert.jsonl.gz", expert)
            stage.made = f"{len(expert)} trajectories, {sum(bool(t.success) for t in expert)} solved"
        return expert

    def encode_expert(self, expert: list[Trajectory]) -> tuple[Any, sad.EncodedCorpus]:
        """Trains the tokenizer and labels the tokens of the expert's trajectories."""
        with self.stages.stage("train the tokenizer, label tokens", 1) as stage:
            tokenizer = train_tokenizer((t.text or "" for t in expert[:1000]), self.config.vocabulary)
            corpus = sad.encode_all(expert, tokenizer, max_length=self.config.context)
            tokens = sum(len(example["input_ids"]) for example in corpus.examples)
            stage.made = f"{len(tokenizer)} entries, {tokens / len(corpus.examples):.0f} tokens per trajectory"
        return tokenizer, corpus

    def train_teacher(self, teacher: Any, tokenizer: Any, examples: Sequence[dict[str, list[int]]]) -> list[float]:
        """Trains the teacher on the expert's trajectories and returns the loss of every step."""
        training = self.config.imitation
        with self.stages.stage("train the teacher on the expert", training.steps) as stage:
            curve = imitate(
                teacher,
                examples,
                training,
                seed=self.config.seed,
                on_step=lambda step, loss: stage.advance(f"loss {loss:.3f}"),
            )
            save(self.out, "teacher", teacher, tokenizer)
            mean = sum(curve[-20:]) / len(curve[-20:])
            stage.made = f"{teacher.num_parameters():,} parameters, last loss {mean:.3f}"
        return curve

    def run_teacher(self, expert: list[Trajectory]) -> list[Trajectory]:
        """Collects trajectories of the teacher. If it solves no task, the students learn from the expert instead."""
        start, count = self.config.expert_tasks, self.config.teacher_tasks
        with self.stages.stage("run the teacher on training tasks", count) as stage:
            parts = max(1, self.config.processes)
            edges = [start + count * part // parts for part in range(parts + 1)]
            jobs = [self.job(play, "teacher", split="train", start=a, end=b) for a, b in pairwise(edges)]
            collected = list(chain.from_iterable(self.workers.run(jobs, stage.advance)))
            sad.write_jsonl(self.out / "teacher.jsonl", collected)
            solved = sum(bool(trajectory.success) for trajectory in collected)
            lessons = "these" if solved else f"{len(expert[:count])} of the expert"
            stage.made = f"{len(collected)} trajectories, {solved} solved: the students learn from {lessons}"
        return collected

    def distill(self, lessons: list[Trajectory], tokenizer: Any) -> dict[str, list[dict[str, float]]]:
        """Trains one student per method side by side, and returns their logs."""
        examples = sad.encode_all(lessons, tokenizer, max_length=self.config.context, observe=True).examples
        steps = self.config.distillation.steps
        with self.stages.stage("train the students side by side", len(METHODS) * steps) as stage:
            jobs = [self.job(distill, agent, examples=examples) for agent in METHODS]
            logs = dict(zip(METHODS, self.workers.run(jobs, stage.advance)))
            stage.made = f"{', '.join(METHODS)}: {steps} steps each"
        return logs

    def run_agents(self) -> dict[str, list[Trajectory]]:
        """Collects trajectories of every agent on the unseen tasks."""
        count, agents = self.config.unseen_tasks, ("teacher", *METHODS)
        with self.stages.stage("run all agents on unseen tasks", count * len(agents)) as stage:
            jobs = [self.job(play, agent, split="valid", start=0, end=count) for agent in agents]
            episodes = dict(zip(agents, self.workers.run(jobs, stage.advance)))
            for agent, trajectories in episodes.items():
                sad.write_jsonl(self.out / "played" / f"{folder_name(agent)}.jsonl", trajectories)
            stage.made = f"{count} tasks, {len(agents)} agents"
        return episodes

    def job(self, function: Any, agent: str, **options: Any) -> Any:
        """Returns a job of `sad.demo.jobs` for `Workers.run`."""
        return partial(function, out=self.out, agent=agent, config=self.config, **options)

    def write_report(self, results: dict[str, Any], lessons: list[Trajectory], tokenizer: Any) -> None:
        """Writes `report.html` with the span labels of three lessons."""
        pieces = {}
        for trajectory in lessons[:3]:
            encoded, found = encode_with_segmentation(trajectory, tokenizer, max_length=self.config.context)
            title = f"{trajectory.task} ({trajectory.id})"
            pieces[title] = token_pieces(found.text, encoded.offsets, encoded.span_ids, truncated=encoded.truncated)
        write_file(self.out / "report.html", demo_page(results, pieces))


def _differences(episodes: dict[str, list[Trajectory]], seed: int) -> dict[str, dict[str, float]]:
    """Compares SAD with the other methods, task by task."""
    successes = {name: np.array([[float(bool(one.success)) for one in played]]) for name, played in episodes.items()}
    own = successes["SAD"]
    return {name: difference(own, successes[name], seed)._asdict() for name in METHODS if name != "SAD"}


def _hardware() -> dict[str, str]:
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
        "system": platform.platform(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
