"""The self-test finds wrong kernels and reports them."""

from __future__ import annotations

import itertools

import pytest
import torch

from sadkernels import backends, selftest

CPU = torch.device("cpu")


@pytest.mark.parametrize("op", selftest.OPS)
def test_quick_cases_pass(op):
    for backend in ("reference", "cpu"):
        outcome = selftest.run(selftest.quick_cases(op), backend, CPU)
        assert outcome.passed and outcome.ran == outcome.cases and outcome.largest_error <= 1, outcome


def test_small_cases_cover_every_dtype_and_strategy():
    everything = set(itertools.product(selftest.DTYPES, (False, True), ("some", "all", "none")))
    for op in ("span_kl", "topk_span_kl"):
        found = list(selftest.all_cases(op, small_only=True))
        assert {(case.dtype, case.in_place, case.supervised) for case in found} == everything
        assert {case.dtype for case in found if case.hidden} == set(selftest.DTYPES)
    assert {case.divergence for case in selftest.all_cases("span_kl")} == {"forward_kl", "reverse_kl", "jsd"}
    assert {case.masks for case in selftest.all_cases("span_ids")} == {False, True}
    listed = list(selftest.all_cases("topk_span_kl"))
    assert {case.alpha for case in listed} == {1.0, 0.6} and {case.tail for case in listed} == {"bucket", "ignore"}
    assert any(case.listed == 0 for case in listed) and any(case.listed == case.vocab for case in listed)


WRONG = [
    selftest.SpanKLCase(9, 1001, torch.float32),
    selftest.SpanKLCase(9, 1001, torch.float32, hidden=True),
    selftest.TopkCase(9, 1001, torch.float32),
    selftest.TopkCase(9, 1001, torch.float32, listed=0),
    selftest.TopkCase(9, 1001, torch.float32, alpha=0.6, hidden=True),
]


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_a_wrong_gradient_is_found(case, monkeypatch):
    kernel = backends.implementation("cpu", "span_kl" if isinstance(case, selftest.SpanKLCase) else "topk_span_kl")
    right = kernel.forward_backward

    def wrong(student, *args, grad, **kwargs):
        values = right(student, *args, grad=grad, **kwargs)
        grad[0, 0] += 0.05
        return values

    monkeypatch.setattr(kernel, "forward_backward", wrong)
    monkeypatch.setattr(kernel, "backward", lambda *args, grad, **kwargs: grad.zero_())
    outcome = selftest.run([case], "cpu", CPU)
    assert not outcome.passed and outcome.largest_error > selftest.ALLOWED
    assert f"{type(case).__name__}(rows=9, vocab=1001" in outcome.failures[0] and "times the rounding" in outcome.failures[0]


def test_a_gradient_on_an_unsupervised_row_is_found(monkeypatch):
    kernel = backends.implementation("cpu", "span_kl")
    right = kernel.forward_backward

    def wrong(student, *args, grad, **kwargs):
        values = right(student, *args, grad=grad, **kwargs)
        grad[1, 3] = 1e-6
        return values

    monkeypatch.setattr(kernel, "forward_backward", wrong)
    outcome = selftest.run([selftest.SpanKLCase(9, 1001, torch.float32)], "cpu", CPU)
    assert outcome.largest_error == float("inf") and not outcome.passed


def test_a_wrong_label_is_found(monkeypatch):
    kernel = backends.implementation("cpu", "span_ids")
    right = kernel.span_ids_from_offsets
    monkeypatch.setattr(kernel, "span_ids_from_offsets", lambda *args, masks: _first_flipped(right(*args, masks=masks)))
    outcome = selftest.run(selftest.quick_cases("span_ids"), "cpu", CPU)
    assert len(outcome.failures) == outcome.ran == 3


def _first_flipped(labels):
    first = labels[0] if isinstance(labels, tuple) else labels
    first[0, 0] = not first[0, 0]
    return labels


def test_an_exception_is_a_failure(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no such symbol\nand a long trace")

    monkeypatch.setattr(backends.implementation("cpu", "span_ids"), "span_ids_from_offsets", broken)
    outcome = selftest.run(selftest.quick_cases("span_ids")[:1], "cpu", CPU)
    assert outcome.failures == ["SpanIdsCase(rows=5, tokens=77, spans=9, masks=False) raised RuntimeError: no such symbol"]


def test_the_time_limit_stops_the_run():
    """The first case always runs."""
    ticks = itertools.count(0, 3.0)
    outcome = selftest.run(selftest.quick_cases("span_ids"), "cpu", CPU, seconds=5, clock=lambda: next(ticks))
    assert (outcome.ran, outcome.cases, outcome.passed) == (2, 3, True)
    assert not selftest.run([], "cpu", CPU).passed
