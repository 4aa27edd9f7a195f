"""A student, a teacher and trajectories for the toy environment with doors, small enough to train in a test."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sad.envs.protocol import Step, Task
from sad.on_policy.rollouts import Rollouts
from sad.training.config import SADConfig
from sad.training.trainer import SADTrainer
from sad.trajectories.encode import encode_all
from sad.trajectories.trajectory import Trajectory
from tests.sad.agents.toy import Doors, toy_tokenizer
from tests.sad.training import tiny

TOKENIZER = toy_tokenizer()


class CountedDoors(Doors):
    """Counts the calls of all its copies."""

    calls = 0

    def reset(self, task: Task) -> str:
        CountedDoors.calls += 1
        return super().reset(task)

    def step(self, action: str) -> Step:
        CountedDoors.calls += 1
        return super().step(action)


def demonstrations(count: int = 3) -> list[Trajectory]:
    """Returns solved episodes of two turns: look, then open the door."""
    env, found = Doors(), []
    for task in env.tasks[:count]:
        text = env.reset(task) + "\n"
        for thought, action in (("I look.", "look"), ("I open it.", task.goal)):
            answer = env.step(action).observation.replace("\n\n", "\n")
            text += f"Reasoning: {thought}\nAction: {action}\n{answer}\n"
        found.append(Trajectory(id=task.id, text=text, format="sad", env="doors", success=True))
    return found


def examples(count: int = 3) -> list[dict[str, list[int]]]:
    """Returns the demonstrations as training examples."""
    return encode_all(demonstrations(count), TOKENIZER, max_length=128).examples


@functools.lru_cache
def models(trained_steps: int = 0) -> tuple[Any, Any]:
    """Returns a student and a teacher. With `trained_steps` the student has seen the demonstrations that often.

    The result is shared: `trainer` copies it.
    """
    student = tiny.model("llama", len(TOKENIZER), seed=2)
    teacher = tiny.model("gpt2", len(TOKENIZER), seed=1, sharpness=30)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    rows = [torch.tensor([example["input_ids"]]) for example in examples()]
    for step in range(trained_steps):
        ids = rows[step % len(rows)]
        student(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return student, teacher


def trainer(
    folder: Path, rollouts: Rollouts | None, pair: Sequence[Any] | None = None, train: Any = None, **fields: Any
) -> SADTrainer:
    """Returns a trainer whose student plays every two steps; keywords are fields of `SADConfig`."""
    student, teacher = copy.deepcopy(models() if pair is None else pair)
    own = {"max_length": 128, "max_steps": 6, "rollout_interval": 2, "rollout_episodes": 6, "on_policy_start": 1.0}
    own |= {"optim": "sgd", "learning_rate": 0.5, "per_device_train_batch_size": 2, "logging_steps": 1, **fields}
    config = SADConfig(output_dir=str(folder), **tiny.CONFIG | own)
    data = examples() if train is None else train
    return SADTrainer(student, teacher, config, train_dataset=data, processing_class=TOKENIZER, rollouts=rollouts)


def weights(made: SADTrainer) -> torch.Tensor:
    """Returns all weights of the student as one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in made.model.parameters()])
