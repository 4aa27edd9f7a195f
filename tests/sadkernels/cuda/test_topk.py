"""The CUDA kernel of the losses against listed columns where it differs from card to card, and under its worst lists."""

from __future__ import annotations

import pytest
import torch

import sad
from sadkernels.native import extension
from tests.sadkernels.cuda.test_ways import DEFAULT, card
from tests.sadkernels.span_kl_cases import assert_close_to_truth
from tests.sadkernels.topk_cases import case, run, truth

IDS = torch.tensor([1, 0, 2])


@pytest.fixture
def on_card(emulated_backend):
    """Sets the card that the kernels are launched for, until the test ends."""
    kernels = extension.load("cuda")
    yield lambda figures: kernels.set_emulated_card(**figures)
    kernels.set_emulated_card(**DEFAULT)


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"logit_softcap": 20.0}], ids=str)
def test_a_row_of_several_windows(emulated_backend, on_card, options):
    """Listed columns and labels in all of them, first and last columns included; the argmax as well."""
    on_card(card(80, 3, 4))  # room for the bits of 512 columns, or of 7680 with one block on a processor
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
    """Edges at the front and the back, some of them listed, with a gradient in groups of another phase."""
    student, logprobs, ids = case(3, 600, 9, dtype)
    for begin in range(8):
        view = student[:, begin : begin + 585]
        ids[0] = torch.tensor([0, 1, 6, 7, 8, 582, 583, 584, 300])
        tensors = (logprobs, ids % 585, IDS)
        options = {"target_ids": torch.tensor([2, 0, 584]), "alpha": 0.5}
        got = run(sad.fused_topk_span_kl, view, tensors, emulated_backend, **options)
        assert_close_to_truth(got, truth(sad.fused_topk_span_kl, view, tensors, **options), dtype)


def test_a_block_takes_row_after_row(emulated_backend, on_card):
    """What one row leaves in shared memory is gone when the next begins."""
    on_card(card(90, 227, 228, processors=1))
    student, logprobs, ids = case(40, 300, 9)
    tensors = (logprobs, ids, 1 + torch.arange(40) % 2)
    got = run(sad.fused_topk_span_kl, student, tensors, emulated_backend)
    assert_close_to_truth(got, truth(sad.fused_topk_span_kl, student, tensors), torch.float32)
