"""The CPU backend keeps the memory of a large gradient from one call to the next."""

from __future__ import annotations

import gc

import pytest
import torch

import sad
from sadkernels.native.cpu import span_kl
from tests.sadkernels.span_kl_cases import assert_close_to_truth, logits, truth

V = 120_000  # 24 rows of float32 are 11 MB: above the size from which memory is kept
IDS = torch.arange(24) % 3


def gradient(student, teacher):
    leaf = student.detach().requires_grad_()
    sad.fused_span_kl(leaf, teacher, IDS, backend="cpu").backward()
    return leaf.grad


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    return logits(24, V), logits(24, V)


def test_memory_comes_back_and_what_it_held_does_not_show(pair):
    """The second call finds the first one's gradient where its own unsupervised rows belong."""
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


def test_a_gradient_that_is_still_held_is_left_alone(pair):
    student, teacher = pair
    held = gradient(student, teacher)
    before = held.clone()
    other = gradient(student.flip(0), teacher)
    assert other.data_ptr() != held.data_ptr() and torch.equal(held, before)


def test_a_view_keeps_the_memory_alive(pair):
    row = gradient(*pair)[1]
    before = row.clone()
    gc.collect()
    gradient(*pair).mul_(-7)
    assert torch.equal(row, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_is_an_ordinary_tensor(dtype):
    like = torch.empty(160_001, 30, dtype=dtype).T  # 9.6 MB in 16 bits
    grad = span_kl.new_logits(like.shape, like)
    assert (grad.shape, grad.dtype, grad.is_contiguous()) == (like.shape, dtype, True)
    grad.fill_(3).add_(1)
    assert (grad == 4).all() and grad.untyped_storage().nbytes() == like.nbytes


def test_pytorchs_poison_for_fresh_memory_reaches_it():
    torch.use_deterministic_algorithms(True)
    try:
        assert span_kl.new_logits((24, V), torch.empty(0)).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)
