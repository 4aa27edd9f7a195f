"""The CUDA kernel of the top-k losses: windows, alignments, and several rows per block."""

from __future__ import annotations

import pytest
import torch

import sad
from tests.sadkernels.cuda.conftest import gpu
from tests.sadkernels.span_kl_cases import assert_close_to_truth
from tests.sadkernels.topk_cases import case, run, truth

IDS = torch.tensor([1, 0, 2])


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"logit_softcap": 20.0}], ids=str)
def test_a_row_of_several_windows(emulated_backend, set_gpu, options):
    """Every window has top-k columns and labels, including its first and last column. The argmax is checked too."""
    set_gpu(gpu(80, 3, 4))  # space for the bits of 512 columns, or of 7680 with one block per SM
    vocab, k = 9001, 40
    student, logprobs, ids = case(3, vocab, k)
    ids[0, :6] = torch.tensor([0, 511, 512, 1023, 8999, 9000])
    ids[0, 6:] = torch.arange(4000, 4000 + k - 6)
    targets = torch.tensor([9000, 5, 513])
    tensors, options = (logprobs, ids, IDS), options | {"target_ids": targets, "alpha": 0.5}
    got = run(sad.fused_topk_span_kl, student, tensors, emulated_backend, **options)
    assert_close_to_truth(got, truth(sad.fused_topk_span_kl, student, tensors, **options), torch.float32)
    student[0, 7777] = student[0, 8888] = 99.0
    agreeing = torch.where(torch.arange(3) == 0, 7777, targets)
    _, stats = sad.fused_span_ce(student, agreeing, IDS, return_stats=True, backend=emulated_backend.name)
    assert stats.reason.agreements == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_begin_anywhere(emulated_backend, dtype):
    """Rows have edge columns at both ends, some of them in the top k, and a gradient that is aligned differently."""
    student, logprobs, ids = case(3, 600, 9, dtype)
    for begin in range(8):
        view = student[:, begin : begin + 585]
        ids[0] = torch.tensor([0, 1, 6, 7, 8, 582, 583, 584, 300])
        tensors = (logprobs, ids % 585, IDS)
        options = {"target_ids": torch.tensor([2, 0, 584]), "alpha": 0.5}
        got = run(sad.fused_topk_span_kl, view, tensors, emulated_backend, **options)
        assert_close_to_truth(got, truth(sad.fused_topk_span_kl, view, tensors, **options), dtype)


def test_a_block_takes_row_after_row(emulated_backend, set_gpu):
    """A row does not see what the previous row left in shared memory."""
    set_gpu(gpu(90, 227, 228, gpc_sms=(1,)))
    student, logprobs, ids = case(40, 300, 9)
    tensors = (logprobs, ids, 1 + torch.arange(40) % 2)
    got = run(sad.fused_topk_span_kl, student, tensors, emulated_backend)
    assert_close_to_truth(got, truth(sad.fused_topk_span_kl, student, tensors), torch.float32)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_deferred_rows(emulated_backend, set_gpu, reduction):
    """Rows with logits of 2^30 between others, with a different number of windows in the two launches."""
    set_gpu(gpu(80, 3, 4))  # space for the bits of 512 columns, or of 7680 with one block per SM
    how = {"reduction": reduction, "inplace_backward": reduction == "mean"}
    huge = torch.tensor([False, True, True, False, False, True])
    student, logprobs, ids = case(6, 1500, 9)
    tensors, targets = (logprobs, ids, torch.tensor([1, 2, 1, 0, 2, 2])), torch.randint(1500, (6,))
    options = {"temperature": 16.0, "target_ids": targets, "alpha": 0.5}
    without_huge = run(sad.fused_topk_span_kl, 16 * student, tensors, emulated_backend, **options, **how)
    student = torch.where(huge[:, None], 2.0**30 - 128.0 * torch.randint(4, (6, 1500)), 16 * student)
    exact = truth(sad.fused_topk_span_kl, student, tensors, reduction=reduction, **options)
    got = run(sad.fused_topk_span_kl, student, tensors, emulated_backend, **options, **how)
    assert_close_to_truth(got, exact, torch.float32)
    assert torch.equal(got[1][~huge], without_huge[1][~huge])
