"""The options of `sad demo` and the sizes of its two variants: minutes on two CPU cores, and seconds for tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sad.options import option
from sad.scratch.shape import DecoderShape


class TrainingConfig(NamedTuple):
    """Optimizer steps, trajectories per step, and peak learning rate of a training run."""

    steps: int
    batch_size: int
    learning_rate: float


class DemoConfig(NamedTuple):
    """Sizes of a demo run.

    Attributes:
        expert_tasks: Number of training tasks of the scripted expert.
        teacher_tasks: Number of further training tasks that the teacher runs for the student.
        unseen_tasks: Number of tasks of the validation split for the final evaluation.
        max_steps: Maximum number of actions per episode.
        context: Maximum number of tokens per episode.
        vocabulary: Maximum size of the tokenizer's vocabulary.
        teacher: Size of the teacher.
        student: Size of the student.
        imitation: Training of the teacher on the trajectories of the expert.
        distillation: Training of each student on the trajectories of the teacher.
        processes: Number of processes that train and play side by side; 0 for this process alone.
        seed: Seed of the tasks, the weights, the batches and the sampling.
    """

    expert_tasks: int
    teacher_tasks: int
    unseen_tasks: int
    max_steps: int
    context: int
    vocabulary: int
    teacher: DecoderShape
    student: DecoderShape
    imitation: TrainingConfig
    distillation: TrainingConfig
    processes: int
    seed: int = 0


FULL = DemoConfig(
    expert_tasks=4200,
    teacher_tasks=500,
    unseen_tasks=100,
    max_steps=20,
    context=640,
    vocabulary=640,
    teacher=DecoderShape(layers=4, width=96, heads=4),
    student=DecoderShape(layers=3, width=64, heads=4),
    imitation=TrainingConfig(steps=1050, batch_size=4, learning_rate=1e-2),
    distillation=TrainingConfig(steps=600, batch_size=4, learning_rate=1e-2),
    processes=3,
)

FAST = DemoConfig(
    expert_tasks=24,
    teacher_tasks=4,
    unseen_tasks=6,
    max_steps=3,
    context=512,
    vocabulary=400,
    teacher=DecoderShape(layers=2, width=32, heads=2),
    student=DecoderShape(layers=1, width=16, heads=2),
    imitation=TrainingConfig(steps=12, batch_size=4, learning_rate=5e-3),
    distillation=TrainingConfig(steps=6, batch_size=2, learning_rate=5e-3),
    processes=0,
)


@dataclass(frozen=True)
class DemoOptions:
    """The options of `sad demo`."""

    out: Path = option(Path("demo-run"), help="Folder of the run. It must be new or empty.")
    seed: int = option(0, help="Seed of the tasks, the weights and the batches.")
    fast: bool = option(False, flag="--fast", help="Run a tiny variant in seconds. Its agents learn little.")

    @property
    def config(self) -> DemoConfig:
        """The sizes of the chosen variant with the chosen seed."""
        return (FAST if self.fast else FULL)._replace(seed=self.seed)
