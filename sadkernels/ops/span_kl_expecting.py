"""The third way of `span_kl_library`: one pass on the expectation that the upstream gradient is what it was the last times.

A float16 gradient cannot be stored before the loss scale is applied, but a loss scale hardly ever changes. So the forward
makes the gradient for the one that is expected, and the backward reads the logits again only if it is another. Only on the
`cpu` backend, where comparing two numbers waits for nothing.
"""

from __future__ import annotations

import math

import torch

from sadkernels.ops.options import (
    OPTIONS_SCHEMA,
    Options,
    fake_results,
    graph_is_kept,
    kernel_for,
    kinds_to_read,
    reduce_values,
    sums_by_kind,
    weigh_rows,
)
from sadkernels.ops.span_kl_library import BACKWARD_TENSORS, scaled_weights, write_gradient
from sadkernels.row_layout import with_row_layout


class _Expectation:
    """The upstream gradient to expect: that of the last two backward passes, if they agreed."""

    def __init__(self) -> None:
        self._last, self._before = 1.0, 1.0

    def value(self) -> float:
        """NaN, which equals nothing, when there is none."""
        return self._last if self._last == self._before else math.nan

    def learn(self, upstream: float) -> None:
        self._last, self._before = upstream, self._last


_expectation = _Expectation()


@torch.library.custom_op(
    "sad::span_kl_expecting",
    mutates_args=(),
    schema=f"(Tensor student, Tensor teacher, Tensor span_ids, Tensor? normalizer, {OPTIONS_SCHEMA})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _span_kl_expecting(student, teacher, span_ids, normalizer, *options):
    """Loss, sums, counts, state, and the gradient for the upstream gradient that comes last; nothing yet if that is NaN."""
    o = Options(*options)
    kernel = kernel_for(o.backend, o.vocab_size, student, teacher)
    expected = _expectation.value() if hasattr(kernel, "forward_backward_with_state") else math.nan
    grad = kernel.new_logits(student.shape, student)
    if math.isnan(expected):
        loss, sums, counts, state = torch.ops.sad.span_kl(student, teacher, span_ids, normalizer, *options, False)
    else:
        rows = weigh_rows(student, teacher, span_ids, normalizer, o)
        logits = with_row_layout(student), with_row_layout(teacher)
        weights = scaled_weights(rows, expected)
        values = kernel.forward_backward_with_state(
            *logits, kinds_to_read(rows, o), weights, o.comparison, stats=o.stats, grad=grad
        )
        loss, sums, counts = reduce_values(values.value, rows, span_ids.shape, o), sums_by_kind(values, rows), rows.counts
        state = values.state
    return loss, sums, counts, state, grad, torch.tensor(expected, device=student.device)


@_span_kl_expecting.register_fake
def _(student, teacher, span_ids, normalizer, *options):
    loss, sums, counts = fake_results(student, teacher, span_ids, Options(*options))
    state = loss.new_empty((3, span_ids.numel()))
    return loss, sums, counts, state, student.new_empty(student.shape), loss.new_empty((), dtype=torch.float32)


@torch.library.custom_op(
    "sad::span_kl_unless_expected_",
    mutates_args=("grad",),
    schema=f"(Tensor(a!) grad, Tensor student, {BACKWARD_TENSORS}, Tensor expected, {OPTIONS_SCHEMA}) -> ()",
)
def _span_kl_unless_expected_(grad, student, teacher, span_ids, normalizer, state, upstream, expected, *options):
    _expectation.learn(float(upstream))
    if float(upstream) != float(expected):
        write_gradient(grad, student, teacher, span_ids, normalizer, state, upstream, options)


@_span_kl_unless_expected_.register_fake
def _(grad, student, teacher, span_ids, normalizer, state, upstream, expected, *options):
    return None


class OnePassIfExpected(torch.autograd.Function):
    """Keeps a gradient, and what makes another if that is not the one."""

    @staticmethod
    def forward(ctx, student, teacher, span_ids, normalizer, options):
        student = student.detach()
        results = torch.ops.sad.span_kl_expecting(student, teacher, span_ids, normalizer, *options)
        loss, sums, counts, state, grad, expected = results
        ctx.save_for_backward(grad, student, teacher, span_ids, normalizer, state, expected)
        ctx.options = options
        ctx.mark_non_differentiable(sums, counts)
        return loss, sums, counts

    @staticmethod
    def backward(ctx, upstream, *_):
        grad, *tensors, expected = ctx.saved_tensors
        if graph_is_kept():
            grad = grad.clone()
        torch.ops.sad.span_kl_unless_expected_(grad, *tensors, upstream, expected, *ctx.options)
        return grad, None, None, None, None
