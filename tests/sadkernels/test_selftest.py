"""Tests that the self-test passes on correct kernels, and reports wrong ones."""

from __future__ import annotations

import itertools

import pytest
import torch

from sadkernels import backends, selftest

CPU = torch.device("cpu")


@pytest.mark.parametrize("op", selftest.OPS)
def test_quick_cases_pass(op):
    for backend in ("reference", "cpu"):
        result = selftest.run(selftest.quick_cases(op), backend, CPU)
        assert result.passed and result.ran == result.cases and result.largest_error <= 1, result


def test_cases_cover_every_dtype_option_and_buffer():
    combinations = set(itertools.product(selftest.DTYPES, (False, True), ("some", "all", "none")))
    for op in ("span_kl", "topk_span_kl"):
        small = list(selftest.all_cases(op, small_only=True))
        assert {(case.dtype, case.in_place, case.supervised) for case in small} == combinations
        assert {case.dtype for case in small if case.hidden} == set(selftest.DTYPES)
    assert {case.divergence for case in selftest.all_cases("span_kl")} == {"forward_kl", "reverse_kl", "jsd"}
    assert {case.masks for case in selftest.all_cases("span_ids")} == {False, True}
    topk = list(selftest.all_cases("topk_span_kl"))
    assert {case.alpha for case in topk} == {1.0, 0.6} and {case.tail for case in topk} == {"bucket", "ignore"}
    assert any(case.k == 0 for case in topk) and any(case.k == case.vocab for case in topk)


WRONG = [
    selftest.SpanKLCase(9, 1001, torch.float32),
    selftest.SpanKLCase(9, 1001, torch.float32, hidden=True),
    selftest.TopkCase(9, 1001, torch.float32),
    selftest.TopkCase(9, 1001, torch.float32, k=0),
    selftest.TopkCase(9, 1001, torch.float32, alpha=0.6, hidden=True),
]


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_a_wrong_gradient_fails(case, monkeypatch):
    kernel = backends.implementation("cpu", "span_kl" if isinstance(case, selftest.SpanKLCase) else "topk_span_kl")
    correct = kernel.forward_backward

    def wrong(student, *args, grad, **kwargs):
        values = correct(student, *args, grad=grad, **kwargs)
        grad[0, 0] += 0.05
        return values

    monkeypatch.setattr(kernel, "forward_backward", wrong)
    monkeypatch.setattr(kernel, "backward", lambda *args, grad, **kwargs: grad.zero_())
    result = selftest.run([case], "cpu", CPU)
    assert not result.passed and result.largest_error > selftest.ALLOWED
    assert f"{type(case).__name__}(rows=9, vocab=1001" in result.failures[0] and "times the rounding" in result.failures[0]


def test_a_gradient_on_an_unsupervised_row_fails(monkeypatch):
    kernel = backends.implementation("cpu", "span_kl")
    correct = kernel.forward_backward

    def wrong(student, *args, grad, **kwargs):
        values = correct(student, *args, grad=grad, **kwargs)
        grad[1, 3] = 1e-6
        return values

    monkeypatch.setattr(kernel, "forward_backward", wrong)
    result = selftest.run([selftest.SpanKLCase(9, 1001, torch.float32)], "cpu", CPU)
    assert result.largest_error == float("inf") and not result.passed


def test_a_wrong_label_fails(monkeypatch):
    kernel = backends.implementation("cpu", "span_ids")
    correct = kernel.span_ids_from_offsets
    monkeypatch.setattr(kernel, "span_ids_from_offsets", lambda *args, masks: _flip_first_label(correct(*args, masks=masks)))
    result = selftest.run(selftest.quick_cases("span_ids"), "cpu", CPU)
    assert len(result.failures) == result.ran == 3


def _flip_first_label(labels):
    first = labels[0] if isinstance(labels, tuple) else labels
    first[0, 0] = not first[0, 0]
    return labels


def test_an_exception_is_a_failure(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no such symbol\nand a long trace")

    monkeypatch.setattr(backends.implementation("cpu", "span_ids"), "span_ids_from_offsets", broken)
    result = selftest.run(selftest.quick_cases("span_ids")[:1], "cpu", CPU)
    assert result.failures == ["SpanIdsCase(rows=5, tokens=77, spans=9, masks=False) raised RuntimeError: no such symbol"]


def test_no_case_starts_after_the_time_limit():
    """The first case always runs."""
    ticks = itertools.count(0, 3.0)
    result = selftest.run(selftest.quick_cases("span_ids"), "cpu", CPU, seconds=5, clock=lambda: next(ticks))
    assert (result.ran, result.cases, result.passed) == (2, 3, True)
    assert not selftest.run([], "cpu", CPU).passed
