"""Fixtures: trainers of tiny models with short defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sad.training.config import SADConfig
from sad.training.trainer import SADTrainer
from tests.sad.training import tiny


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., SADConfig]:
    """Returns a function that builds a `SADConfig` for the CPU, with its own output folder."""

    def build(**fields) -> SADConfig:
        return SADConfig(**{"output_dir": str(tmp_path / "run"), **tiny.CONFIG, **fields})

    return build


@pytest.fixture
def trainer(config) -> Callable[..., SADTrainer]:
    """Returns a function that builds a trainer. Keywords replace its parts, or are fields of `SADConfig`."""

    def build(model=None, teacher=None, train=None, eval=None, **fields) -> SADTrainer:
        model = tiny.model(seed=2) if model is None else model
        teacher = tiny.model(seed=1, sharpness=30) if teacher is None else teacher
        train = tiny.examples() if train is None else train
        return SADTrainer(model, teacher, config(**fields), train_dataset=train, eval_dataset=eval)

    return build
