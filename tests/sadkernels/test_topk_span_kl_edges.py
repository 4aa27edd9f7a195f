"""Edge cases of the top-k KL and the cross-entropy: unusual ids, infinities, NaN, rows without a span."""

from __future__ import annotations

import math

import pytest
import torch

import sad
from tests.sadkernels.topk_cases import IDS, case, run, truth

TOPK, CE = sad.fused_topk_span_kl, sad.fused_span_ce


def test_absent_repeated_and_out_of_range_ids(backend):
    """Padding and out-of-range ids belong to the tail; the first of two equal ids is used; no read out of bounds."""
    student, logprobs, ids = case(8, 60, 6)
    padded, ids_padded = torch.full((8, 9), math.nan), torch.full((8, 9), -1)
    padded[:, 1:7], ids_padded[:, 1:7] = logprobs, ids
    ids_padded[:, 7], ids_padded[:, 8] = 2**40, 60
    for tail in ("bucket", "ignore"):
        expected = run(TOPK, student, (logprobs, ids, IDS), backend, tail=tail)
        got = run(TOPK, student, (padded, ids_padded, IDS), backend, tail=tail)
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-7)
        twice = torch.cat([logprobs, logprobs + 1], 1), torch.cat([ids, ids], 1)
        got = run(TOPK, student, (*twice, IDS), backend, tail=tail)
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-7)
        nothing = run(TOPK, student, (padded, torch.full_like(ids_padded, -1), IDS), backend, tail=tail)
        assert nothing[0].abs() < 1e-6 and nothing[1].abs().max() < 1e-6


@pytest.mark.parametrize("mixed", [False, True])
def test_infinite_logits(backend, mixed):
    inf = math.inf
    student, logprobs, ids = case(8, 100, 10)
    student[1].scatter_(0, ids[1, :1], -inf)  # p > 0 = q
    student[2] = torch.where(torch.zeros(100, dtype=torch.bool).scatter(0, ids[2], True), student[2], -inf)  # an empty tail
    student[3, 90:] = -inf
    logprobs[3, 4] = -inf
    ids[3] = torch.arange(10)
    options = {"reduction": "none"} | ({"target_ids": ids[:, 5], "alpha": 0.5} if mixed else {})
    got = run(TOPK, student, (logprobs, ids, IDS), backend, **options)
    exact = truth(TOPK, student, (logprobs, ids, IDS), **options)
    assert got[0][1] == inf and got[0][2] == inf and got[1].isfinite().all() and got[0][[3, 5, 6]].isfinite().all()
    torch.testing.assert_close(got[0].double(), exact[0], rtol=2e-6, atol=0)
    torch.testing.assert_close(got[1].double(), exact[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("poison", ["nan in top k", "nan in tail", "nan in teacher", "all -inf", "+inf"])
@pytest.mark.parametrize("tail", ["bucket", "ignore"])
def test_nan_in_nan_out(backend, poison, tail):
    student, logprobs, ids = case(8, 100, 10)
    in_tail = next(c for c in range(100) if c not in ids[1])
    if poison == "nan in teacher":
        logprobs[1, 3] = math.nan
    elif poison == "all -inf":
        student[1] = -math.inf
    else:
        student[1, ids[1, 2] if "top k" in poison else in_tail] = math.inf if poison == "+inf" else math.nan
    kl, _ = run(TOPK, student, (logprobs, ids, IDS), backend, tail=tail, reduction="none")
    assert kl[1].isnan() and kl[[0, 2, 3, 4, 5, 6, 7]].isfinite().all()


def test_unsupervised_rows_are_not_read(backend):
    student, logprobs, ids = case(8, 700, 12)
    clean = run(TOPK, student, (logprobs, ids, IDS), backend, lambda_reason=0.0)
    unread = IDS != 2
    student[unread], logprobs[unread], ids[unread] = math.nan, math.inf, 2**62
    loss, grad = run(TOPK, student, (logprobs, ids, IDS), backend, lambda_reason=0.0)
    assert torch.equal(loss, clean[0]) and torch.equal(grad, clean[1]) and (grad[unread] == 0).all()


@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_supervised_is_exactly_zero(backend, rows, reduction):
    student, ids = torch.full((rows, 30), math.nan), torch.zeros(rows, dtype=torch.uint8)
    tensors = (torch.zeros(rows, 3), torch.zeros(rows, 3, dtype=torch.int64), ids)
    for loss, grad in (
        run(TOPK, student, tensors, backend, reduction=reduction),
        run(CE, student, (ids, ids), backend, reduction=reduction),
    ):
        assert (loss == 0).all() and grad.shape == student.shape and (grad == 0).all()
