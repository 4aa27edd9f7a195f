"""Two processes on the CPU (gloo) train what one trains."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.sad.training import distributed_worker as worker

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> dict:
    """What two processes wrote: a whole run, and one that was stopped and resumed."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What torchrun sets, without its own start-up time.
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.sad.training.distributed_worker", str(folder)]
    logs = [(folder / f"{rank}.log").open("w+") for rank in range(2)]
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=240) for process in processes]
    finally:
        for process, log in zip(processes, logs):
            process.kill()
            log.close()
    assert codes == [0, 0], (folder / "0.log").read_text()[-3000:] + (folder / "1.log").read_text()[-3000:]
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
