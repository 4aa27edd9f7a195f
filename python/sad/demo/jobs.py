"""The parts of the demo that run side by side: one student per method, and episodes of a saved model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

import sad
from sad.agents.collect import collect
from sad.demo.config import DemoConfig
from sad.files import share_files
from sad.study.assets import MAX_REPEATS
from sad.study.config import Training
from sad.study.labels import relabel
from sad.study.methods import resolve
from sad.study.training import Example, train
from sad.trajectories.trajectory import Trajectory

ENV = "household"
BEFORE = "student before"  # the weights that every student starts from
METHODS = {"SAD": "sad", "token KL": "token_kl", "imitation": "imitation"}  # names of the demo and of `sad study`


def household(config: DemoConfig, split: str) -> Any:
    """Returns the environment of the demo, for the split "train" or "valid"."""
    tasks = config.expert_tasks + config.teacher_tasks if split == "train" else config.unseen_tasks
    return sad.envs.make(ENV, split=split, seed=config.seed, size="small", tasks=tasks)


def folder_name(agent: str) -> str:
    """Returns the folder of an agent: "token KL" is in "token-kl"."""
    return agent.replace(" ", "-").lower()


def save(out: Path, agent: str, model: Any, tokenizer: Any) -> None:
    """Saves an agent with its tokenizer in the folder of the run."""
    place = out / folder_name(agent)
    tokenizer.save_pretrained(place)
    model.save_pretrained(place)
    share_files(place)


def load(out: Path, agent: str) -> tuple[Any, Any]:
    """Returns the model of an agent, in float32, and its tokenizer."""
    place = out / folder_name(agent)
    return AutoModelForCausalLM.from_pretrained(place, dtype="float32"), AutoTokenizer.from_pretrained(place)


def distill(
    advance: Callable[[], None], *, out: Path, agent: str, config: DemoConfig, examples: Sequence[Example]
) -> list[dict[str, float]]:
    """Trains a student with one method, saves it, and returns its log: `step`, and the loss per kind.

    All methods start from the same weights and have as many steps. The curriculum of SAD orders its batches differently.

    Args:
        advance: Called after each step.
        out: Folder of the run.
        agent: A name of `METHODS`.
        config: Sizes of the run.
        examples: The encoded trajectories, with the labels of SAD and of observations.
    """
    method, (steps, batch_size, learning_rate) = resolve(METHODS[agent], {}), config.distillation
    teacher, tokenizer = load(out, "teacher")
    student, _ = load(out, BEFORE)
    trained = train(
        student,
        teacher if method.uses_teacher else None,
        relabel(examples, method.labels, config.seed),
        Training(steps, learning_rate, batch_size, optimizer="muon"),
        settings={**method.settings, "use_cpu": True},
        learning_rate=learning_rate,
        seed=config.seed,
        max_length=config.context,
        points=range(1, steps + 1),
        on_point=lambda step: advance(),
    )
    save(out, agent, student, tokenizer)
    return trained.curve


def play(
    advance: Callable[[], None], *, out: Path, agent: str, config: DemoConfig, split: str, start: int, end: int
) -> list[Trajectory]:
    """Returns the greedy episodes of a saved model on the tasks from `start` to `end` of a split.

    Args:
        advance: Called after each episode.
        out: Folder of the run.
        agent: Name of the agent.
        config: Sizes of the run.
        split: "train" or "valid".
        start: Index of the first task.
        end: Index after the last task.
    """
    model, tokenizer = load(out, agent)
    env = household(config, split)
    return collect(
        model,
        tokenizer,
        env,
        env.tasks[start:end],
        env_name=ENV,
        seed=config.seed,
        extra={"model": agent},
        on_trajectory=lambda trajectory: advance(),
        max_steps=config.max_steps,
        max_length=config.context,
        batch_size=128,
        max_repeats=MAX_REPEATS,
    )
