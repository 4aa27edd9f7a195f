"""The demo's stages in their order; what each makes goes to the next and into the run's folder."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PrinterCallback, TrainerCallback

import sad
from sad.agents.collect import collect, collect_expert
from sad.agents.evaluate import evaluate
from sad.demo.config import Settings
from sad.demo.models import WARMUP, build_model, imitate, train_tokenizer
from sad.demo.optimizer import Muon
from sad.demo.progress import Stage, Stages
from sad.errors import InputError
from sad.report.overlay import token_pieces
from sad.report.page import demo_page
from sad.trajectories.trajectory import Trajectory

ENV = "household"
AGENTS = ("teacher", "SAD student", "untrained student")


def check_folder(out: Path) -> None:
    """Refuses a folder that holds anything.

    Raises:
        InputError: `out` is a file or a folder that is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            "out",
            "a new or empty folder",
            f"{str(out)!r}, which holds something",
            "Choose another with --out, or remove it.",
        )


def run_demo(out: Path, settings: Settings, stages: Stages) -> dict[str, Any]:
    """Runs all stages.

    Args:
        out: Folder of the run, new or empty.
        settings: Sizes and seed.
        stages: Shows progress and takes the time.

    Returns:
        What `results.json` in the folder holds.

    Raises:
        InputError: The folder is not empty.
    """
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    seed = settings.seed
    count = settings.expert_tasks + settings.teacher_tasks
    train = sad.envs.make(ENV, split="train", seed=seed, size="small", tasks=count)
    unseen = sad.envs.make(ENV, split="valid", seed=seed, size="small", tasks=settings.unseen_tasks)

    with stages.stage("expert plays training tasks", settings.expert_tasks) as stage:
        expert = collect_expert(
            train, train.tasks[: settings.expert_tasks], on_trajectory=lambda trajectory: stage.advance()
        )
        sad.write_jsonl(out / "expert.jsonl.gz", expert)
        stage.made = f"{len(expert)} trajectories, {sum(bool(t.success) for t in expert)} solved"

    with stages.stage("tokenizer and labels", 1) as stage:
        tokenizer = train_tokenizer((t.text or "" for t in expert[:1000]), settings.vocabulary)
        corpus = sad.encode_all(expert, tokenizer, max_length=settings.context)
        tokens = sum(len(example["input_ids"]) for example in corpus.examples)
        stage.made = f"{len(tokenizer)} entries, {tokens / len(corpus.examples):.0f} tokens per trajectory"

    teacher = build_model(settings.teacher, tokenizer, settings.context, seed)
    student = build_model(settings.student, tokenizer, settings.context, seed + 1)
    for name, model in (("teacher", teacher), ("student-before", student)):
        tokenizer.save_pretrained(out / name)
        model.save_pretrained(out / name)
    sizes = {
        name: sum(p.numel() for p in model.parameters()) for name, model in (("teacher", teacher), ("student", student))
    }

    with stages.stage("teacher learns from the expert", settings.imitation.steps) as stage:
        curve = imitate(
            teacher,
            corpus.examples,
            **settings.imitation._asdict(),
            seed=seed,
            on_step=lambda step, loss: stage.advance(f"loss {loss:.3f}"),
        )
        teacher.save_pretrained(out / "teacher")
        stage.made = f"{sizes['teacher']:,} parameters, last loss {sum(curve[-20:]) / len(curve[-20:]):.3f}"

    limits = {"max_steps": settings.max_steps, "max_length": settings.context, "env_name": ENV}
    limits |= {"batch_size": 128, "max_repeats": 3}  # all at once; an agent that is stuck costs little
    with stages.stage("teacher plays training tasks", settings.teacher_tasks) as stage:
        written = collect(
            teacher,
            tokenizer,
            train,
            train.tasks[settings.expert_tasks :],
            seed=seed,
            extra={"model": "teacher"},
            on_trajectory=lambda trajectory: stage.advance(),
            **limits,
        )
        sad.write_jsonl(out / "teacher.jsonl", written)
        solved = [trajectory for trajectory in written if trajectory.success]
        # a teacher too short of training to solve anything has nothing to hand on; then the expert's are distilled
        lessons = solved or expert[: settings.teacher_tasks]
        kept = "these are distilled" if solved else f"{len(lessons)} of the expert's are distilled instead"
        stage.made = f"{len(written)} trajectories, {len(solved)} solved: {kept}"

    with stages.stage("student is distilled with SAD", settings.distillation.steps) as stage:
        log = _distil(student, teacher, tokenizer, lessons, out, settings, stage)
        student.save_pretrained(out / "student")
        tokenizer.save_pretrained(out / "student")
        last = log[-1]
        stage.made = (
            f"{sizes['student']:,} parameters, KL reasoning {last['loss_reason']:.3f}, action {last['loss_act']:.3f}"
        )

    before = transformers.AutoModelForCausalLM.from_pretrained(out / "student-before")
    players = dict(zip(AGENTS, (teacher, student, before)))
    played: dict[str, list[Trajectory]] = {}
    with stages.stage("all play unseen tasks", settings.unseen_tasks * len(players)) as stage:
        for name, model in players.items():
            played[name] = collect(
                model,
                tokenizer,
                unseen,
                unseen.tasks,
                extra={"model": name},
                on_trajectory=lambda trajectory: stage.advance(),
                **limits,
            )
            sad.write_jsonl(out / "played" / f"{name.replace(' ', '-').lower()}.jsonl", played[name])
        stage.made = f"{settings.unseen_tasks} tasks, {len(players)} agents"

    results = {
        "version": sad.__version__,
        "settings": settings._asdict(),
        "hardware": _hardware(),
        "models": {name: {"parameters": size} for name, size in sizes.items()},
        "data": {
            "expert_trajectories": len(expert),
            "teacher_trajectories": len(written),
            "distilled_trajectories": len(lessons),
            "distilled_from": "teacher" if solved else "expert",
            "unseen_tasks": settings.unseen_tasks,
        },
        "evaluations": {
            name: evaluate(trajectories, tokenizer, reference=played["teacher"], seed=seed)
            for name, trajectories in played.items()
        },
        "curves": {
            "teacher": list(enumerate(curve, start=1)),
            "reason": [(entry["step"], entry["loss_reason"]) for entry in log],
            "act": [(entry["step"], entry["loss_act"]) for entry in log],
        },
        "stages": stages.records,
        "seconds": stages.seconds,
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    pieces = {}
    for trajectory in lessons[:3]:
        encoded = sad.encode(trajectory, tokenizer, max_length=settings.context)
        title = f"{trajectory.task} ({trajectory.id})"
        pieces[title] = token_pieces(trajectory.text or "", encoded.offsets, encoded.span_ids, truncated=encoded.truncated)
    (out / "report.html").write_text(demo_page(results, pieces))
    return results


class _Advance(TrainerCallback):
    """Moves the stage's bar, with the last logged losses beside it."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._note = stage, ""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss_reason" in logs:
            self._note = f"KL reasoning {logs['loss_reason']:.3f}, action {logs['loss_act']:.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._stage.advance(self._note)


def _distil(
    student: Any, teacher: Any, tokenizer: Any, lessons: list[Trajectory], out: Path, settings: Settings, stage: Stage
) -> list[dict[str, float]]:
    """Trains the student in place; returns the trainer's log."""
    corpus = sad.encode_all(lessons, tokenizer, max_length=settings.context)
    steps, batch_size, learning_rate = settings.distillation
    config = sad.SADConfig(
        output_dir=str(out / "distillation"),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=1,
        learning_rate=learning_rate,
        warmup_steps=WARMUP,
        max_length=settings.context,
        logging_steps=max(1, steps // 100),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=settings.seed,
    )
    trainer = sad.SADTrainer(
        student,
        teacher,
        config,
        train_dataset=corpus.examples,
        callbacks=[_Advance(stage)],
        optimizers=(Muon(student, learning_rate=learning_rate), None),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss_reason" in entry]


def _hardware() -> dict[str, str]:
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
        "system": platform.platform(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
