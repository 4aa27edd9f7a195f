"""Throughput and peak memory: the counted tokens and the measured time."""

from __future__ import annotations

import time

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers import Trainer, TrainerCallback

from sad.model_parts import Head
from sad.training import metrics
from sad.training.contrastive import directions, info_nce
from sad.training.metrics import MeanMeter, Throughput, speed_metrics
from tests.sad.training import tiny


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    return clock


def test_pauses_and_logs_cut_the_time(clock):
    meter = Throughput(torch.device("cpu"))
    clock.now += 50  # before training begins
    meter.on_train_begin(None, None, None)
    meter.add(torch.tensor([[1, 1, 1], [1, 0, 0]]))
    clock.now += 2
    with meter.paused():
        clock.now += 10
    with pytest.raises(RuntimeError), meter.paused():
        clock.now += 10
        raise RuntimeError
    meter.add(torch.tensor([[1, 1, 0]]))
    clock.now += 1
    tokens, seconds, peak = meter.take().tolist()
    assert (tokens, seconds) == (6, 3) and 2**26 < peak < 2**40
    clock.now += 4
    assert meter.take().tolist()[:2] == [0, 4]


def test_tokens_add_up_over_processes_and_the_largest_peak_counts():
    taken = torch.tensor([[30.0, 2.0, 3 * 2.0**30], [50.0, 1.5, 5 * 2.0**30]])
    found = speed_metrics(taken, supervised=20.0)
    assert found == {"tokens_per_second": 40, "supervised_tokens_per_second": 10, "peak_memory_gib": 5}
    assert speed_metrics(taken, supervised=20.0, tensor_parallel=2)["tokens_per_second"] == 20
    assert "peak_memory_gib" not in speed_metrics(torch.tensor([[30.0, 2.0, 0.0]]), supervised=20.0)


def test_a_training_logs_tokens_without_padding_over_training_time(trainer, clock, monkeypatch):
    """Each step takes one second, each evaluation and each checkpoint 100 seconds."""
    data = tiny.examples(8)
    fields = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    made = trainer(train=data, eval=data[:2], logging_steps=2, gradient_accumulation_steps=2, curriculum=False, **fields)

    class Passing(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            clock.now += 1.0

        def on_prediction_step(self, args, state, control, **kwargs):
            clock.now += 100.0

    made.add_callback(Passing())
    save = Trainer._save_checkpoint

    def slow(*args, **kwargs):
        clock.now += 100.0
        return save(*args, **kwargs)

    monkeypatch.setattr(Trainer, "_save_checkpoint", slow)
    made.train()
    logs = [log for log in made.state.log_history if "loss" in log]
    tokens = 2 * sum(len(example["input_ids"]) for example in data)  # two epochs in four steps of two batches of four
    assert len(logs) == 2
    assert [log["tokens_per_second"] for log in logs] == [tokens / 2, tokens / 2]
    for log in logs:
        assert log["supervised_tokens_per_second"] == (log["tokens_reason"] + log["tokens_act"]) / 2
        assert log["peak_memory_gib"] > 0.05


def test_no_device_synchronization():
    """Counting and the contrastive term work on fake tensors, whose values cannot be read."""
    meter, mean = Throughput(torch.device("cpu")), MeanMeter()
    with FakeTensorMode():
        hidden, ids = torch.empty(2, 5, 3, requires_grad=True), torch.empty(2, 5, dtype=torch.int8)
        own, present = directions(hidden, Head(torch.empty(7, 3), None, 1.0, None), ids, 7, (1, 2))
        for _ in range(2):
            meter.add(ids)
            mean.add(info_nce(own, own.detach(), present, 0.1))
        with pytest.raises(DataDependentOutputException):
            present.sum().item()


def test_real_seconds(trainer):
    """Without a fake clock, tokens divided by the throughput are about the time of the training."""
    data = tiny.examples(8)
    made = trainer(train=data, max_steps=6, logging_steps=6, per_device_train_batch_size=8)
    began = time.perf_counter()
    made.train()
    log = made.state.log_history[0]
    seconds = 6 * sum(len(example["input_ids"]) for example in data) / log["tokens_per_second"]
    assert 0 < seconds < time.perf_counter() - began
