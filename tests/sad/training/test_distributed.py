"""Two processes on the CPU (gloo) train what one trains."""

from __future__ import annotations

import json

import pytest
import torch

from tests.processes import run_two
from tests.sad.training import distributed_worker as worker


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> dict:
    """What two processes wrote: a whole run, and one that was stopped and resumed."""
    folder = tmp_path_factory.mktemp("two")
    run_two("tests.sad.training.distributed_worker", folder)
    return torch.load(folder / "result.pt")


def test_two_processes_are_one(two, tmp_path):
    """Loss, both span losses, gradient norm, weights; the evaluation set does not divide evenly."""
    alone = worker.trainer(tmp_path, batch=4)
    alone.train()
    one = worker.record(alone)
    assert two["processes"] == 2 and len(one["logs"]) == 7
    for ours, theirs in zip(one["logs"], two["whole"]["logs"]):
        assert theirs == pytest.approx(ours, rel=1e-5)
    assert two["whole"]["eval"] == pytest.approx(one["eval"], rel=1e-5)
    torch.testing.assert_close(two["whole"]["weights"], one["weights"], rtol=0, atol=1e-6)
    assert (one["weights"] - worker.weights(worker.trainer(tmp_path / "new", batch=4))).abs().max() > 1e-3
    assert two["curriculum"] == json.loads((tmp_path / "curriculum.json").read_text())


def test_resumed_in_two_processes(two):
    """Inside the second epoch: every process must find that epoch's order again."""
    torch.testing.assert_close(two["resumed"]["weights"], two["whole"]["weights"], rtol=0, atol=0)
