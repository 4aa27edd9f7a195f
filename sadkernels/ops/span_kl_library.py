"""The span KL on logits as `torch.library` ops with fakes and autograd, once for all backends.

Three ways to the gradient, same values:

* one pass (a scalar loss of float32 or bfloat16 logits): the forward knows each row's weight, so it leaves the gradient
  behind while the logits are at hand, and the backward multiplies by the upstream gradient only if that is not 1;
* two passes (`reduction="none"`, whose row weights are known in the backward only; float16, where a gradient stored
  before the loss scale is applied would underflow; and a vocabulary shared by several processes, which must first hear from
  each other): the forward keeps three numbers a row, the backward reads the logits again;
* one pass on the expectation that the upstream gradient, a loss scale, is what it was the last times
  (`span_kl_expecting.py`).
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from sadkernels.ops import vocab_parallel
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
from sadkernels.ops.row_weights import RowWeights, row_kinds
from sadkernels.row_layout import with_row_layout


def _kernel_of(options, student: Tensor, teacher: Tensor) -> ModuleType:
    o = Options(*options)
    return kernel_for(o.backend, o.vocab_size, student, teacher)


# --- two passes: an op with its gradient registered ---


@torch.library.custom_op(
    "sad::span_kl",
    mutates_args=(),
    schema=f"(Tensor student, Tensor teacher, Tensor span_ids, Tensor? normalizer, {OPTIONS_SCHEMA}, bool inplace_backward)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _span_kl(student, teacher, span_ids, normalizer, *options):
    """Loss, sums, counts, and the state (3, N) that the backward needs."""
    o = Options(*options[:-1])
    rows = weigh_rows(student, teacher, span_ids, normalizer, o)
    kernel = kernel_for(o.backend, o.vocab_size, student, teacher)
    logits = with_row_layout(student), with_row_layout(teacher)
    if o.group:
        values = vocab_parallel.forward(kernel, *logits, kinds_to_read(rows, o), o.comparison, stats=o.stats, group=o.group)
    else:
        values = kernel.forward(*logits, kinds_to_read(rows, o), o.comparison, stats=o.stats)
    return reduce_values(values.value, rows, span_ids.shape, o), sums_by_kind(values, rows), rows.counts, values.state


@_span_kl.register_fake
def _(student, teacher, span_ids, normalizer, *options):
    loss, sums, counts = fake_results(student, teacher, span_ids, Options(*options[:-1]))
    return loss, sums, counts, loss.new_empty((3, span_ids.numel()))


def scaled_weights(rows: RowWeights, upstream: Tensor | float) -> Tensor:
    """The row weights times the upstream gradient: one number, or one a row."""
    return torch.where(rows.weights != 0, rows.weights * upstream, 0)


def write_gradient(grad: Tensor, student, teacher, span_ids, normalizer, state, upstream, options) -> None:
    """The gradient from a state and the upstream gradient, written to `grad`."""
    o = Options(*options)
    rows = weigh_rows(student, teacher, span_ids, normalizer, o)
    weights = scaled_weights(rows, upstream.reshape(-1).to(rows.weights.dtype))
    kernel_for(o.backend, o.vocab_size, student, teacher).backward(
        with_row_layout(student),
        with_row_layout(teacher),
        rows.kinds * (rows.weights != 0),
        state,
        weights,
        o.comparison,
        grad=grad,
    )


BACKWARD_TENSORS = "Tensor teacher, Tensor span_ids, Tensor? normalizer, Tensor state, Tensor upstream"


@torch.library.custom_op(
    "sad::span_kl_backward", mutates_args=(), schema=f"(Tensor student, {BACKWARD_TENSORS}, {OPTIONS_SCHEMA}) -> Tensor"
)
def _span_kl_backward(student, teacher, span_ids, normalizer, state, upstream, *options):
    grad = _kernel_of(options, student, teacher).new_logits(student.shape, student)
    write_gradient(grad, student, teacher, span_ids, normalizer, state, upstream, options)
    return grad


@_span_kl_backward.register_fake
def _(student, teacher, span_ids, normalizer, state, upstream, *options):
    return student.new_empty(student.shape)


@torch.library.custom_op(
    "sad::span_kl_backward_",
    mutates_args=("student",),
    schema=f"(Tensor(a!) student, {BACKWARD_TENSORS}, {OPTIONS_SCHEMA}) -> ()",
)
def _span_kl_backward_(student, teacher, span_ids, normalizer, state, upstream, *options):
    write_gradient(student, student, teacher, span_ids, normalizer, state, upstream, options)


@_span_kl_backward_.register_fake
def _(student, teacher, span_ids, normalizer, state, upstream, *options):
    return None


def _setup_context(ctx, inputs, output):
    student, teacher, span_ids, normalizer, *ctx.options, ctx.inplace_backward = inputs
    _, sums, counts, state = output
    ctx.mark_non_differentiable(sums, counts, state)
    ctx.save_for_backward(student, teacher, span_ids, normalizer, state)


def _two_pass_backward(ctx, upstream, *_):
    student, *saved = ctx.saved_tensors
    if ctx.inplace_backward:
        grad = student.detach()
        torch.ops.sad.span_kl_backward_(grad, *saved, upstream, *ctx.options)
    else:
        grad = torch.ops.sad.span_kl_backward(student, *saved, upstream, *ctx.options)
    return grad, None, None, None, *(None for _ in ctx.options), None


_span_kl.register_autograd(_two_pass_backward, setup_context=_setup_context)


# --- one pass: the forward writes the gradient ---


def _forward_backward(grad: Tensor, student, teacher, span_ids, normalizer, options) -> tuple[Tensor, Tensor, Tensor]:
    o = Options(*options)
    rows = weigh_rows(student, teacher, span_ids, normalizer, o)
    kernel = kernel_for(o.backend, o.vocab_size, student, teacher)
    logits = with_row_layout(student), with_row_layout(teacher)
    values = kernel.forward_backward(*logits, kinds_to_read(rows, o), rows.weights, o.comparison, stats=o.stats, grad=grad)
    return reduce_values(values.value, rows, span_ids.shape, o), sums_by_kind(values, rows), rows.counts


@torch.library.custom_op(
    "sad::span_kl_with_grad",
    mutates_args=(),
    schema=f"(Tensor student, Tensor teacher, Tensor span_ids, Tensor? normalizer, {OPTIONS_SCHEMA})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _span_kl_with_grad(student, teacher, span_ids, normalizer, *options):
    grad = _kernel_of(options, student, teacher).new_logits(student.shape, student)
    return *_forward_backward(grad, student, teacher, span_ids, normalizer, options), grad


@_span_kl_with_grad.register_fake
def _(student, teacher, span_ids, normalizer, *options):
    return *fake_results(student, teacher, span_ids, Options(*options)), student.new_empty(student.shape)


@torch.library.custom_op(
    "sad::span_kl_with_grad_",
    mutates_args=("student",),
    schema=f"(Tensor(a!) student, Tensor teacher, Tensor span_ids, Tensor? normalizer, {OPTIONS_SCHEMA})"
    " -> (Tensor, Tensor, Tensor)",
)
def _span_kl_with_grad_(student, teacher, span_ids, normalizer, *options):
    return _forward_backward(student, student, teacher, span_ids, normalizer, options)


@_span_kl_with_grad_.register_fake
def _(student, teacher, span_ids, normalizer, *options):
    return fake_results(student, teacher, span_ids, Options(*options))


@torch.library.custom_op(
    "sad::scale_supervised_rows_",
    mutates_args=("grad",),
    schema="(Tensor(a!) grad, Tensor span_ids, Tensor factor, bool shift, str backend) -> ()",
)
def _scale_supervised_rows_(grad, span_ids, factor, shift, backend):
    kernel_for(backend, grad.shape[-1], grad).scale(grad, row_kinds(span_ids, shift), factor)


@_scale_supervised_rows_.register_fake
def _(grad, span_ids, factor, shift, backend):
    return None


class OnePass(torch.autograd.Function):
    """Keeps the gradient and nothing else between forward and backward."""

    @staticmethod
    def forward(ctx, student, teacher, span_ids, normalizer, options, inplace_backward):
        if inplace_backward:
            grad = student.detach()  # shares the version counter: whoever saved these logits is told
            loss, sums, counts = torch.ops.sad.span_kl_with_grad_(grad, teacher, span_ids, normalizer, *options)
        else:
            detached = student.detach()
            loss, sums, counts, grad = torch.ops.sad.span_kl_with_grad(detached, teacher, span_ids, normalizer, *options)
        ctx.save_for_backward(grad, span_ids)  # released before it is returned, so accumulation takes it without a copy
        ctx.shift, ctx.backend, ctx.inplace_backward = options.shift, options.backend, inplace_backward
        ctx.mark_non_differentiable(sums, counts)
        return loss, sums, counts

    @staticmethod
    def backward(ctx, upstream, *_):
        grad, span_ids = ctx.saved_tensors
        if graph_is_kept() and not ctx.inplace_backward:
            grad = grad.clone()
        torch.ops.sad.scale_supervised_rows_(grad, span_ids, upstream, ctx.shift, ctx.backend)
        return grad, None, None, None, None, None
