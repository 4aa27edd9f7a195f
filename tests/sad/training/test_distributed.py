"""Two processes on the CPU (gloo) train the same weights as one."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest
import torch

from sad.errors import InputError
from sad.training.peers import accumulation_after_move
from sad.training.sharding import check_launch
from tests.processes import run_two
from tests.sad.teacher_cache import tiny_cache
from tests.sad.training import distributed_worker as worker


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> dict:
    """Returns the results of two processes: a whole run, and one that was stopped and resumed."""
    folder = tmp_path_factory.mktemp("two")
    worker.train_to_stop(folder / "moved", batch=4)
    run_two("tests.sad.training.distributed_worker", folder)
    return torch.load(folder / "result.pt") | {"lost": json.loads((folder / "lost.json").read_text())}


def test_two_processes_are_one(two, tmp_path):
    """Compares losses, gradient norm and weights. The evaluation set does not divide evenly."""
    alone = worker.trainer(tmp_path, batch=4)
    alone.train()
    one = worker.record(alone)
    assert two["processes"] == 2 and len(one["logs"]) == 7
    for ours, theirs in zip(one["logs"], two["whole"]["logs"]):
        assert theirs == pytest.approx(ours, rel=1e-5)
    assert two["whole"]["shares"] == pytest.approx(one["shares"], rel=1e-6)
    assert two["whole"]["eval"] == pytest.approx(one["eval"], rel=1e-5)
    torch.testing.assert_close(two["whole"]["weights"], one["weights"], rtol=0, atol=1e-6)
    assert (one["weights"] - worker.weights(worker.trainer(tmp_path / "new", batch=4))).abs().max() > 1e-3
    assert two["curriculum"] == json.loads((tmp_path / "curriculum.json").read_text())


def test_resumed_in_two_processes(two):
    """Resumes inside the second epoch, whose order every process must restore."""
    torch.testing.assert_close(two["resumed"]["weights"], two["whole"]["weights"], rtol=0, atol=0)


def test_resumed_in_another_number_of_processes(two, tmp_path):
    """One process resumes a checkpoint that two processes saved inside the second epoch."""
    shutil.copytree(Path(two["folder"]) / "whole" / "checkpoint-4", tmp_path / "checkpoint-4")
    one = worker.trainer(tmp_path, batch=4)
    one.train(resume_from_checkpoint=True)
    assert one.state.global_step == 7
    torch.testing.assert_close(worker.weights(one), two["whole"]["weights"], rtol=0, atol=1e-6)


def test_a_signal_to_one_process_stops_both_with_one_checkpoint(two):
    assert two["stopped"] == ["checkpoint-2"]


def test_a_process_without_a_supervised_token(two, tmp_path):
    """Steps in which one process, or both, have no label equal those of one process with both examples."""
    loss = two["without labels"]["loss"]
    assert len(loss) == 6 and all(0 <= x < 100 for x in loss) and any(loss)
    one = worker.trainer(tmp_path, batch=2, gradient_accumulation_steps=1, max_steps=6, save_strategy="no", curriculum=False)
    examples = [dict(example) for example in one.train_dataset]
    for example in examples[::2]:
        example["span_ids"] = [0] * len(example["span_ids"])
    one.train_dataset = examples
    one.train()
    torch.testing.assert_close(two["without labels"]["weights"], worker.weights(one), rtol=0, atol=1e-6)


def test_resumed_on_another_number_of_processes(two):
    """One process trains the first steps, two the others: the data order is the same."""
    torch.testing.assert_close(two["moved"]["weights"], two["whole"]["weights"], rtol=0, atol=1e-6)


def test_a_process_that_ends_ends_the_other(two):
    """The other process stops within seconds, with one message."""
    assert "another one has closed" in two["lost"]["message"] and "--resume" in two["lost"]["message"]
    assert two["lost"]["seconds"] < 30


def test_accumulation_follows_the_processes():
    """A step keeps its trajectories if that is possible. A change of the user is reported."""
    assert accumulation_after_move((1, 4, 4), 4, 4, processes=1) == (4, "")
    accumulation, message = accumulation_after_move((1, 4, 4), 4, 4, processes=2)
    assert accumulation == 2 and "2 processes x 4 trajectories x 2" in message and "same 16 trajectories" in message
    assert accumulation_after_move((1, 4, 4), 8, 2, processes=1)[0] == 2
    accumulation, message = accumulation_after_move((1, 4, 4), 4, 8, processes=1)
    assert accumulation == 8 and "differs" in message
    with pytest.raises(InputError, match="number of processes: expected a divisor of 16 // 4"):
        accumulation_after_move((1, 4, 4), 4, 4, processes=3)


def test_processes_that_would_train_alone_are_refused(monkeypatch, tmp_path):
    """Without a GPU and without use_cpu, transformers does not join the processes."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"world_size: expected the 2 processes .* train alone.*use_cpu"):
        check_launch(argparse.Namespace(world_size=1))


def test_one_process_cannot_share_the_teacher(tmp_path):
    with pytest.raises(InputError, match="teacher_sharding: expected false with one process"):
        worker.trainer(tmp_path, batch=2, teacher_sharding=True)


def test_the_contrastive_term_of_two_processes(two, tmp_path):
    """The batches of two processes equal two accumulated ones, because negatives never come from another batch."""
    one = worker.contrastive(tmp_path, accumulate=2)
    for ours, theirs in zip(one["logs"], two["contrastive"]["logs"]):
        assert theirs == pytest.approx(ours, rel=1e-5) and ours["contrastive_loss"] > 0
    torch.testing.assert_close(two["contrastive"]["weights"], one["weights"], rtol=0, atol=1e-6)


def test_two_processes_make_and_read_one_teacher_cache(two, tmp_path):
    """Each computes a part, and both find all of it."""
    one, both = tiny_cache.make_and_train(tmp_path, batch=4), two["cached"]
    assert both["rows"].keys() == one["rows"].keys() and both["files"] > one["files"] == 1
    for digest, rows in one["rows"].items():
        for ours, theirs in zip(rows, both["rows"][digest]):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(one["logs"], both["logs"]):
        assert theirs == pytest.approx(ours, rel=1e-4)
    assert both["eval"] == pytest.approx(one["eval"], rel=1e-4)
    torch.testing.assert_close(both["weights"], one["weights"], rtol=0, atol=1e-5)
