"""The gradient of a head that FSDP2 shards over two processes whose rows differ: the mean of theirs, or a refusal."""

from __future__ import annotations

import pytest
import torch

from tests.processes import run_two
from tests.sadkernels import sharded_head_worker as worker


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """Returns the results of both ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    run_two("tests.sadkernels.sharded_head_worker", folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("way", ["inside", "gathered"])
def test_the_gradient_is_the_mean_over_processes(ranks, way):
    """`inside` computes the loss in the forward of the FSDP module, `gathered` from `full_tensor(grad_placements=...)`."""
    alone = []
    for rank in range(2):
        student = worker.Student()
        student(rank).backward()
        alone.append(worker.gradients(student))
    mean = [(a + b) / 2 for a, b in zip(*alone)]
    for found in ranks:
        for ours, expected, first in zip(found[way], mean, alone[0]):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
            assert (first - expected).abs().max() > 0.01


def test_a_sharded_head_that_needs_a_gradient_is_refused(ranks):
    """Its gradient would be each process's own. Without a gradient it is gathered."""
    for rank, found in enumerate(ranks):
        assert found["message"].startswith("student_weight: expected a whole tensor if it needs a gradient, got a DTensor")
        assert "grad_placements" in found["message"]
        student = worker.Student()
        assert found["value"] == pytest.approx(student(rank).item(), rel=1e-6)
