"""A training loop of one's own: the same weights as `sad.SADTrainer`, alone and with two processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from sad import SADTrainer, SpanCollator
from sad.integrations.accelerate import Distillation
from sad.trajectories.trajectory import write_jsonl
from tests.processes import run_python, run_two
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


def test_the_example_trains(tmp_path):
    for name, seed in (("teacher", 1), ("student", 2)):
        tiny.model(seed=seed).save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    write_jsonl(tmp_path / "data.jsonl", tiny.trajectories(12))
    teacher, student, data, out = (tmp_path / name for name in ("teacher", "student", "data.jsonl", "out"))
    done = run_python("examples/accelerate_loop.py", teacher, student, data, "sad", out, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loss ") == 2  # 12 trajectories, 2 per batch, 4 batches per step
    before, after = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("student", "out"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


if __name__ == "__main__":
    main(sys.argv[1])
