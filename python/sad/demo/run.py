"""The stages of the demo, from the scripted expert to the evaluation of the distilled student."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PrinterCallback, TrainerCallback

import sad
from sad.agents.collect import collect, collect_expert
from sad.agents.evaluate import evaluate
from sad.demo.config import DemoOptions
from sad.demo.imitation import WARMUP, imitate
from sad.demo.progress import Stage, Stages
from sad.envs.protocol import Env, Task
from sad.errors import InputError
from sad.files import share_files, write_file
from sad.report.overlay import token_pieces
from sad.report.page import demo_page
from sad.scratch.models import build_decoder, train_tokenizer
from sad.scratch.muon import Muon
from sad.trajectories.encode import encode_with_segmentation
from sad.trajectories.trajectory import Trajectory

ENV = "household"
AGENTS = ("teacher", "SAD student", "untrained student")


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
    """A demo run. Each method is a stage that saves its result in the folder of the run."""

    def __init__(self, options: DemoOptions, stages: Stages) -> None:
        self.out, self.config, self.stages = options.out, options.config, stages

    def run(self) -> dict[str, Any]:
        config, seed = self.config, self.config.seed
        tasks = config.expert_tasks + config.teacher_tasks
        train_env = sad.envs.make(ENV, split="train", seed=seed, size="small", tasks=tasks)
        unseen_env = sad.envs.make(ENV, split="valid", seed=seed, size="small", tasks=config.unseen_tasks)

        expert = self.run_expert(train_env)
        tokenizer, corpus = self.encode_expert(expert)
        teacher = build_decoder(config.teacher, tokenizer, config.context, seed)
        student = build_decoder(config.student, tokenizer, config.context, seed + 1)
        for name, model in (("teacher", teacher), ("student-before", student)):
            self.save_model(name, model, tokenizer)
        teacher_curve = self.train_teacher(teacher, corpus.examples)
        collected = self.run_teacher(teacher, tokenizer, train_env, expert)
        solved = [trajectory for trajectory in collected if trajectory.success]
        lessons = solved or expert[: config.teacher_tasks]
        log = self.distill(student, teacher, tokenizer, lessons)
        untrained = transformers.AutoModelForCausalLM.from_pretrained(self.out / "student-before")
        episodes = self.run_agents(dict(zip(AGENTS, (teacher, student, untrained))), tokenizer, unseen_env)

        results = {
            "version": sad.__version__,
            "settings": config._asdict() | {"teacher": asdict(config.teacher), "student": asdict(config.student)},
            "hardware": _hardware(),
            "models": {
                name: {"parameters": _parameter_count(model)} for name, model in (("teacher", teacher), ("student", student))
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
            "curves": {
                "teacher": list(enumerate(teacher_curve, start=1)),
                "reason": [(entry["step"], entry["loss_reason"]) for entry in log],
                "act": [(entry["step"], entry["loss_act"]) for entry in log],
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

    def train_teacher(self, teacher: Any, examples: Sequence[dict[str, list[int]]]) -> list[float]:
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
            teacher.save_pretrained(self.out / "teacher")
            share_files(self.out / "teacher")
            mean = sum(curve[-20:]) / len(curve[-20:])
            stage.made = f"{_parameter_count(teacher):,} parameters, last loss {mean:.3f}"
        return curve

    def run_teacher(self, teacher: Any, tokenizer: Any, env: Env, expert: list[Trajectory]) -> list[Trajectory]:
        """Collects trajectories of the teacher. If it solves no task, the student learns from the expert instead."""
        with self.stages.stage("run the teacher on training tasks", self.config.teacher_tasks) as stage:
            collected = self.collect(teacher, tokenizer, env, env.tasks[self.config.expert_tasks :], "teacher", stage)
            sad.write_jsonl(self.out / "teacher.jsonl", collected)
            solved = sum(bool(trajectory.success) for trajectory in collected)
            fallback = len(expert[: self.config.teacher_tasks])
            use = "the student learns from these" if solved else f"the student learns from {fallback} of the expert"
            stage.made = f"{len(collected)} trajectories, {solved} solved: {use}"
        return collected

    def distill(self, student: Any, teacher: Any, tokenizer: Any, lessons: list[Trajectory]) -> list[dict[str, float]]:
        """Trains the student in place with `sad.SADTrainer` and returns the log of the trainer."""
        config = self.config
        steps, batch_size, learning_rate = config.distillation
        with self.stages.stage("distill the student with SAD", steps) as stage:
            trainer = sad.SADTrainer(
                student,
                teacher,
                sad.SADConfig(
                    output_dir=str(self.out / "distillation"),
                    max_steps=steps,
                    per_device_train_batch_size=batch_size,
                    gradient_accumulation_steps=1,
                    learning_rate=learning_rate,
                    warmup_steps=WARMUP,
                    max_length=config.context,
                    logging_steps=max(1, steps // 100),
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                    use_cpu=True,
                    seed=config.seed,
                ),
                train_dataset=sad.encode_all(lessons, tokenizer, max_length=config.context).examples,
                callbacks=[_StageCallback(stage)],
                optimizers=(Muon(student, learning_rate=learning_rate), None),
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            log = [entry for entry in trainer.state.log_history if "loss_reason" in entry]
            self.save_model("student", student, tokenizer)
            stage.made = f"{_parameter_count(student):,} parameters, {_losses(log[-1])}"
        return log

    def run_agents(self, agents: dict[str, Any], tokenizer: Any, env: Env) -> dict[str, list[Trajectory]]:
        """Collects trajectories of every agent on the unseen tasks."""
        count = self.config.unseen_tasks
        episodes: dict[str, list[Trajectory]] = {}
        with self.stages.stage("run all agents on unseen tasks", count * len(agents)) as stage:
            for name, model in agents.items():
                episodes[name] = self.collect(model, tokenizer, env, env.tasks, name, stage)
                sad.write_jsonl(self.out / "played" / f"{name.replace(' ', '-').lower()}.jsonl", episodes[name])
            stage.made = f"{count} tasks, {len(agents)} agents"
        return episodes

    def collect(
        self, model: Any, tokenizer: Any, env: Env, tasks: Sequence[Task], name: str, stage: Stage
    ) -> list[Trajectory]:
        """Collects greedy trajectories of a model."""
        return collect(
            model,
            tokenizer,
            env,
            tasks,
            env_name=ENV,
            seed=self.config.seed,
            extra={"model": name},
            on_trajectory=lambda trajectory: stage.advance(),
            max_steps=self.config.max_steps,
            max_length=self.config.context,
            batch_size=128,
            max_repeats=3,  # ends the episodes of an agent that is stuck early
        )

    def save_model(self, name: str, model: Any, tokenizer: Any) -> None:
        """Saves a model with its tokenizer in a folder of the run."""
        tokenizer.save_pretrained(self.out / name)
        model.save_pretrained(self.out / name)
        share_files(self.out / name)

    def write_report(self, results: dict[str, Any], lessons: list[Trajectory], tokenizer: Any) -> None:
        """Writes `report.html` with the span labels of three lessons."""
        pieces = {}
        for trajectory in lessons[:3]:
            encoded, found = encode_with_segmentation(trajectory, tokenizer, max_length=self.config.context)
            title = f"{trajectory.task} ({trajectory.id})"
            pieces[title] = token_pieces(found.text, encoded.offsets, encoded.span_ids, truncated=encoded.truncated)
        write_file(self.out / "report.html", demo_page(results, pieces))


class _StageCallback(TrainerCallback):
    """Advances the bar of the stage and shows the last logged losses beside it."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._note = stage, ""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss_reason" in logs:
            self._note = _losses(logs)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._stage.advance(self._note)


def _losses(logs: dict[str, float]) -> str:
    return f"KL reasoning {logs['loss_reason']:.3f}, action {logs['loss_act']:.3f}"


def _parameter_count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _hardware() -> dict[str, str]:
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
        "system": platform.platform(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
