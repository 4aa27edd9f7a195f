"""A training loop of one's own: the same weights as `sad.SADTrainer`, alone and with two processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from sad import SADTrainer, SpanCollator
from sad.integrations.accelerate import Distillation
from tests.processes import run_two
from tests.sad.training import tiny
from tests.sad.training.test_losses import STEP
from tests.sad.training.test_trainer import logged, weights


def train_a_step(batch_size: int) -> tuple[float, torch.Tensor]:
    """One step of SGD over eight trajectories, with as many accumulated batches as there are; loss and weights."""
    accelerator = Accelerator(cpu=True)
    student = tiny.model(seed=2)
    distillation = Distillation(accelerator, student, tiny.model(seed=1, sharpness=30))
    loader = DataLoader(tiny.examples(8), batch_size=batch_size, collate_fn=SpanCollator())
    student, optimizer, loader = accelerator.prepare(student, torch.optim.SGD(student.parameters(), lr=0.5), loader)
    student.train()
    result = distillation.backward(student, list(loader))
    optimizer.step()
    return result.loss.item(), torch.nn.utils.parameters_to_vector(accelerator.unwrap_model(student).parameters()).detach()


def main(folder: str) -> None:
    """Runs in each of two processes."""
    loss, trained = train_a_step(batch_size=2)
    if Accelerator(cpu=True).is_main_process:
        torch.save({"loss": loss, "weights": trained}, Path(folder) / "result.pt")


def test_a_step_is_that_of_the_trainer(config, tmp_path):
    expected = SADTrainer(
        tiny.model(seed=2), tiny.model(seed=1, sharpness=30), config(**STEP), train_dataset=tiny.examples(8)
    )
    expected.train()
    run_two("tests.sad.integrations.test_accelerate", tmp_path)
    found = torch.load(tmp_path / "result.pt")
    for loss, trained in (train_a_step(batch_size=8), train_a_step(batch_size=3), (found["loss"], found["weights"])):
        assert loss == pytest.approx(logged(expected, "loss")[0], rel=1e-5)
        torch.testing.assert_close(trained, weights(expected), rtol=0, atol=2e-6)


if __name__ == "__main__":
    main(sys.argv[1])
