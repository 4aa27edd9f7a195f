"""What the demo does how often: one set that fits into minutes on two cores, one for tests."""

from __future__ import annotations

from typing import NamedTuple

from sad.demo.models import Shape


class Training(NamedTuple):
    """Steps of one training, trajectories per step, and the highest learning rate."""

    steps: int
    batch_size: int
    learning_rate: float


class Settings(NamedTuple):
    """The demo's sizes.

    Attributes:
        expert_tasks: Training tasks the scripted expert plays.
        teacher_tasks: Further training tasks, which the teacher plays for the student.
        unseen_tasks: Tasks of the validation split, played at the end.
        max_steps: Actions per episode.
        context: Tokens per episode.
        vocabulary: Largest number of tokenizer entries.
        teacher: Size of the teacher.
        student: Size of the student.
        imitation: How the teacher learns from the expert.
        distillation: How the student learns from the teacher.
        seed: Of everything.
    """

    expert_tasks: int
    teacher_tasks: int
    unseen_tasks: int
    max_steps: int
    context: int
    vocabulary: int
    teacher: Shape
    student: Shape
    imitation: Training
    distillation: Training
    seed: int = 0


FULL = Settings(
    expert_tasks=4200,
    teacher_tasks=500,
    unseen_tasks=50,
    max_steps=20,
    context=640,
    vocabulary=640,
    teacher=Shape(layers=4, width=96, heads=4),
    student=Shape(layers=3, width=64, heads=4),
    imitation=Training(steps=1050, batch_size=4, learning_rate=1e-2),
    distillation=Training(steps=900, batch_size=4, learning_rate=1e-2),
)

FAST = Settings(
    expert_tasks=24,
    teacher_tasks=4,
    unseen_tasks=6,
    max_steps=3,
    context=512,
    vocabulary=400,
    teacher=Shape(layers=2, width=32, heads=2),
    student=Shape(layers=1, width=16, heads=2),
    imitation=Training(steps=12, batch_size=4, learning_rate=5e-3),
    distillation=Training(steps=6, batch_size=2, learning_rate=5e-3),
)
