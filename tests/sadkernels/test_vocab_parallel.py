"""A vocabulary that two processes (gloo) share, compared with the same rows in one process."""

from __future__ import annotations

import pytest
import torch

import sad
from tests.processes import run_two
from tests.sadkernels.cuda import emulated
from tests.sadkernels.span_kl_cases import assert_close_to_truth, truth
from tests.sadkernels.vocab_parallel_worker import BACKENDS, CASES, IDS, SLICES, tensors


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    if reason := emulated.unbuildable():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as environment:  # all backends on the CPU
        environment.setenv("SAD_CUDA_EMULATED", str(emulated.library()))
        environment.setenv("TRITON_INTERPRET", "1")
        run_two("tests.sadkernels.vocab_parallel_worker", folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", BACKENDS)
def test_two_slices_are_one_row(ranks, name, case):
    """The loss on both ranks and the gradients of both slices equal those of the concatenated columns."""
    results = [rank[name, case] for rank in ranks]
    assert torch.equal(results[0][0], results[1][0])
    grad = torch.cat([grad for _, grad, _ in results], dim=1)
    options = {key: value for key, value in CASES[case].items() if key != "inplace_backward"}
    exact = truth(*tensors(), IDS, upstream=-0.6, **options)
    assert grad.shape[1] == SLICES[-1][1]
    assert_close_to_truth((results[0][0], grad), exact, torch.float32, operand=10.0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", BACKENDS)
def test_statistics_of_the_whole_rows(ranks, name, case):
    """Entropies and argmax agreements use the columns of all ranks; the lower column wins a tie across ranks."""
    student, teacher = tensors()
    options = {key: value for key, value in CASES[case].items() if key != "inplace_backward"}
    _, stats = sad.fused_span_kl(student.double(), teacher.double(), IDS, return_stats=True, **options)
    expected = [torch.stack([x.double() for x in kind]) for kind in stats]
    for rank in ranks:
        for ours, whole in zip(rank[name, case][2], expected):
            torch.testing.assert_close(ours, whole, rtol=3e-6, atol=1e-6)
