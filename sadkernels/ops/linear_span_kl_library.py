"""The span KL from hidden states as `torch.library` ops with fakes and autograd; `linear_chunks` does the work.

As on logits there are two ways to the gradient: made in the forward and scaled in the backward, or, for `reduction="none"`,
whose row weights the backward brings along, from logits that are made once more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels.ops import linear_chunks
from sadkernels.ops.linear_chunks import Gradients, Head
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
from sadkernels.ops.row_weights import RowWeights


class Inputs(NamedTuple):
    """The tensors that every op below takes first, in this order."""

    student_hidden: Tensor  # (..., H_s)
    student_weight: Tensor  # (V_s, H_s)
    student_bias: Tensor | None
    teacher_hidden: Tensor  # (..., H_t)
    teacher_weight: Tensor
    teacher_bias: Tensor | None
    span_ids: Tensor
    normalizer: Tensor | None
    rows: Tensor | None  # (M,) the supervised ones, where the caller knows

    @property
    def student(self) -> Head:
        return Head(self.student_hidden.flatten(0, -2), self.student_weight, self.student_bias)

    @property
    def teacher(self) -> Head:
        return Head(self.teacher_hidden.flatten(0, -2), self.teacher_weight, self.teacher_bias)


_INPUTS = (
    "Tensor student_hidden, Tensor student_weight, Tensor? student_bias, Tensor teacher_hidden, Tensor teacher_weight, "
    "Tensor? teacher_bias, Tensor span_ids, Tensor? normalizer, Tensor? rows"
)
_SETTINGS = f"{OPTIONS_SCHEMA}, int chunk_bytes"
_COUNT = len(Inputs._fields)


def _supervised(x: Inputs, of_rows: RowWeights, o: Options) -> Tensor:
    """The rows that are projected. Finding them waits for the device, unless the caller has."""
    return kinds_to_read(of_rows, o).nonzero().squeeze(-1) if x.rows is None else x.rows


def _results(values, rows: Tensor, of_rows: RowWeights, o: Options, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Loss and sums of all rows from the values of those that were projected."""
    projected = RowWeights(of_rows.kinds[rows], of_rows.weights[rows], of_rows.counts)
    if o.reduction == "none":
        by_token = torch.zeros_like(of_rows.weights).index_copy_(0, rows, values.value)
        return by_token.view(shape), sums_by_kind(values, projected)
    return reduce_values(values.value, projected, shape, o), sums_by_kind(values, projected)


def _new_or_empty(gradients: Gradients, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ops return tensors: an empty one stands for a gradient that nobody wants."""
    return tuple(like.new_empty(0) if x is None else x for x in gradients)


def _finished(gradients: Gradients, x: Inputs) -> Gradients:
    """In the dtypes of what they are gradients of, but for float16, which waits for the loss scale."""
    if x.student_hidden.dtype == torch.float16:
        return gradients
    return Gradients(*(g if g is None else g.to(x.student_weight.dtype) for g in gradients))


@torch.library.custom_op(
    "sad::linear_span_kl_with_grad",
    mutates_args=(),
    schema=f"({_INPUTS}, {_SETTINGS}, bool[] wants) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _with_grad(*arguments):
    """Loss, sums, counts, and the gradients of the student's hidden states, weight and bias where upstream is 1."""
    x, (*options, chunk_bytes, wants) = Inputs(*arguments[:_COUNT]), arguments[_COUNT:]
    o = Options(*options)
    of_rows = weigh_rows(x.student_hidden, x.teacher_hidden, x.span_ids, x.normalizer, o)
    rows = _supervised(x, of_rows, o)
    kernel = kernel_for(o.backend, o.vocab_size, x.student_hidden, x.teacher_hidden)
    into = linear_chunks.new_gradients(x.student, wants)
    values = linear_chunks.forward_backward(kernel, x.student, x.teacher, rows, of_rows, o, chunk_bytes, into)
    loss, sums = _results(values, rows, of_rows, o, x.span_ids.shape)
    return loss, sums, of_rows.counts, *_new_or_empty(_finished(_shaped(into, x), x), loss)


def _shaped(gradients: Gradients, x: Inputs) -> Gradients:
    hidden = gradients.hidden
    return gradients._replace(hidden=None if hidden is None else hidden.view(x.student_hidden.shape))


def _fake_gradients(x: Inputs, wants: list[bool], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    late = x.student_hidden.dtype == torch.float16
    leaves = (x.student_hidden, x.student_weight, x.student_bias)
    dtype = torch.float32 if late else x.student_weight.dtype
    return tuple(
        x.new_empty(x.shape, dtype=dtype) if want and x is not None else like.new_empty(0) for x, want in zip(leaves, wants)
    )


@_with_grad.register_fake
def _(*arguments):
    x, (*options, _, wants) = Inputs(*arguments[:_COUNT]), arguments[_COUNT:]
    loss, sums, counts = fake_results(x.student_hidden, x.teacher_hidden, x.span_ids, Options(*options))
    return loss, sums, counts, *_fake_gradients(x, wants, loss)


@torch.library.custom_op(
    "sad::linear_span_kl", mutates_args=(), schema=f"({_INPUTS}, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
def _forward(*arguments):
    """Loss, sums, counts, and the state (3, N) that the backward needs, zeros for rows that were not projected."""
    x, (*options, chunk_bytes) = Inputs(*arguments[:_COUNT]), arguments[_COUNT:]
    o = Options(*options)
    of_rows = weigh_rows(x.student_hidden, x.teacher_hidden, x.span_ids, x.normalizer, o)
    rows = _supervised(x, of_rows, o)
    kernel = kernel_for(o.backend, o.vocab_size, x.student_hidden, x.teacher_hidden)
    values = linear_chunks.forward(kernel, x.student, x.teacher, rows, of_rows, o, chunk_bytes)
    loss, sums = _results(values, rows, of_rows, o, x.span_ids.shape)
    state = loss.new_zeros((3, x.span_ids.numel())).index_copy_(1, rows, values.state)
    return loss, sums, of_rows.counts, state


@_forward.register_fake
def _(*arguments):
    x, options = Inputs(*arguments[:_COUNT]), arguments[_COUNT:-1]
    loss, sums, counts = fake_results(x.student_hidden, x.teacher_hidden, x.span_ids, Options(*options))
    return loss, sums, counts, loss.new_empty((3, x.span_ids.numel()))


@torch.library.custom_op(
    "sad::linear_span_kl_backward",
    mutates_args=(),
    schema=f"({_INPUTS}, Tensor state, Tensor upstream, {_SETTINGS}, bool[] wants) -> (Tensor, Tensor, Tensor)",
)
def _backward(*arguments):
    x, (state, upstream, *options, chunk_bytes, wants) = Inputs(*arguments[:_COUNT]), arguments[_COUNT:]
    o = Options(*options)
    of_rows = weigh_rows(x.student_hidden, x.teacher_hidden, x.span_ids, x.normalizer, o)
    weights = torch.where(of_rows.weights != 0, of_rows.weights * upstream.reshape(-1).to(of_rows.weights.dtype), 0)
    of_rows = of_rows._replace(weights=weights)
    rows = _supervised(x, of_rows, o)
    kernel = kernel_for(o.backend, o.vocab_size, x.student_hidden, x.teacher_hidden)
    into = linear_chunks.new_gradients(x.student, wants)
    linear_chunks.backward(kernel, x.student, x.teacher, rows, of_rows, state[:, rows], o, chunk_bytes, into)
    return _new_or_empty(_finished(_shaped(into, x), x), state)


@_backward.register_fake
def _(*arguments):
    x, wants = Inputs(*arguments[:_COUNT]), arguments[-1]
    return _fake_gradients(x, wants, arguments[_COUNT])


_NO_GRADIENTS = [None] * (_COUNT - 3)


def _detached(tensors: tuple[Tensor | None, ...]) -> Inputs:
    return Inputs(*(x if x is None else x.detach() for x in tensors))


class _GradientInForward(torch.autograd.Function):
    """Keeps the gradients and nothing else between forward and backward."""

    @staticmethod
    def forward(ctx, options, chunk_bytes, *tensors):
        x, wants = _detached(tensors), list(ctx.needs_input_grad[2:5])
        loss, sums, counts, *gradients = torch.ops.sad.linear_span_kl_with_grad(*x, *options, chunk_bytes, wants)
        ctx.save_for_backward(*gradients)
        ctx.wants, ctx.dtype = wants, x.student_hidden.dtype
        ctx.mark_non_differentiable(sums, counts)
        return loss, sums, counts

    @staticmethod
    def backward(ctx, upstream, *_):
        kept = graph_is_kept()
        scaled = (_scaled(g, upstream, want, kept, ctx.dtype) for g, want in zip(ctx.saved_tensors, ctx.wants))
        return None, None, *scaled, *_NO_GRADIENTS


def _scaled(gradient: Tensor, upstream: Tensor, want: bool, kept: bool, dtype: torch.dtype) -> Tensor | None:
    """The gradient times the loss's own, without waiting for it; on the CPU a factor of 1 costs nothing."""
    if not want:
        return None
    if upstream.device.type == "cpu" and not torch.compiler.is_compiling() and float(upstream) == 1.0:
        scaled = gradient.clone() if kept else gradient
    else:
        scaled = gradient * upstream.to(gradient.dtype) if kept else gradient.mul_(upstream.to(gradient.dtype))
    return scaled.to(dtype)


class _GradientInBackward(torch.autograd.Function):
    """Keeps the inputs and three numbers a row."""

    @staticmethod
    def forward(ctx, options, chunk_bytes, *tensors):
        loss, sums, counts, state = torch.ops.sad.linear_span_kl(*_detached(tensors), *options, chunk_bytes)
        ctx.save_for_backward(*tensors, state)
        ctx.wants, ctx.settings = list(ctx.needs_input_grad[2:5]), (*options, chunk_bytes)
        ctx.mark_non_differentiable(sums, counts)
        return loss, sums, counts

    @staticmethod
    def backward(ctx, upstream, *_):
        gradients = torch.ops.sad.linear_span_kl_backward(*ctx.saved_tensors, upstream, *ctx.settings, ctx.wants)
        dtype = ctx.saved_tensors[0].dtype
        return None, None, *(g.to(dtype) if want else None for g, want in zip(gradients, ctx.wants)), *_NO_GRADIENTS


def linear_span_kl_op(x: Inputs, options: Options, chunk_bytes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, sums (2, 4) and counts (2,), by the way to the gradient that fits; arguments have been checked."""
    if not torch.is_grad_enabled() or not any(leaf is not None and leaf.requires_grad for leaf in x[:3]):
        return torch.ops.sad.linear_span_kl(*x, *options, chunk_bytes)[:3]
    way = _GradientInBackward if options.reduction == "none" else _GradientInForward
    return way.apply(options, chunk_bytes, *x)
