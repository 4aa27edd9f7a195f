"""The CPU backend reuses the memory of a large gradient in the next call."""

from __future__ import annotations

import gc

import pytest
import torch

import sad
from sadkernels.native.cpu import span_kl
from tests.sadkernels.span_kl_cases import assert_close_to_truth, logits, truth

V = 120_000  # 24 rows of float32 are 11 MB, above the minimum size for reuse
IDS = torch.arange(24) % 3


def gradient(student, teacher):
    leaf = student.detach().requires_grad_()
    sad.fused_span_kl(leaf, teacher, IDS, backend="cpu").backward()
    return leaf.grad


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    return logits(24, V), logits(24, V)


def test_reused_memory_does_not_show_old_values(pair):
    """The memory of the second call holds the first gradient, also on rows that are unsupervised in the second call."""
    student, teacher = pair
    first = gradient(student.flip(0), teacher)
    address = first.data_ptr()
    del first
    gc.collect()
    second = gradient(student, teacher)
    assert second.data_ptr() == address
    loss = sad.fused_span_kl(student, teacher, IDS)
    assert_close_to_truth((loss, second), truth(student, teacher, IDS), torch.float32)
    assert (second[IDS == 0] == 0).all()


def test_memory_of_a_live_gradient_is_not_reused(pair):
    student, teacher = pair
    held = gradient(student, teacher)
    before = held.clone()
    other = gradient(student.flip(0), teacher)
    assert other.data_ptr() != held.data_ptr() and torch.equal(held, before)


def test_a_live_view_prevents_reuse(pair):
    row = gradient(*pair)[1]
    before = row.clone()
    gc.collect()
    gradient(*pair).mul_(-7)
    assert torch.equal(row, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_reused_memory_is_an_ordinary_tensor(dtype):
    like = torch.empty(160_001, 30, dtype=dtype).T  # 9.6 MB in 16-bit dtypes
    grad = span_kl.new_logits(like.shape, like)
    assert (grad.shape, grad.dtype, grad.is_contiguous()) == (like.shape, dtype, True)
    grad.fill_(3).add_(1)
    assert (grad == 4).all() and grad.untyped_storage().nbytes() == like.nbytes


def test_pytorch_fills_uninitialized_memory_with_nan():
    torch.use_deterministic_algorithms(True)
    try:
        assert span_kl.new_logits((24, V), torch.empty(0)).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)
