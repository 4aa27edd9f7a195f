"""Trainers on tiny models, with defaults that keep a test short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sad.training.config import SADConfig
from sad.training.trainer import SADTrainer
from tests.sad.training import tiny


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., SADConfig]:
    """`SADConfig` for the CPU, in a folder of its own."""

    def build(**fields) -> SADConfig:
        return SADConfig(**{"output_dir": str(tmp_path / "run"), **tiny.CONFIG, **fields})

    return build


@pytest.fixture
def trainer(config) -> Callable[..., SADTrainer]:
    """A student and an opinionated teacher, before training; keywords are fields of `SADConfig`, or parts to replace."""

    def build(model=None, teacher=None, train=None, eval=None, **fields) -> SADTrainer:
        model = tiny.model(seed=2) if model is None else model
        teacher = tiny.model(seed=1, sharpness=30) if teacher is None else teacher
        train = tiny.examples() if train is None else train
        return SADTrainer(model, teacher, config(**fields), train_dataset=train, eval_dataset=eval)

    return build
