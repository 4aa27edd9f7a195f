"""Losses from hidden states as `torch.library` ops with fakes and autograd, once for all of them; `linear_chunks` does the
work.

As on logits there are two ways to the gradient: made in the forward and scaled in the backward, or, for `reduction="none"`,
whose row weights the backward brings along, from logits that are made once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sadkernels.divergence import RowValues
from sadkernels.ops import linear_chunks
from sadkernels.ops.linear_chunks import Gradients, Head, Target
from sadkernels.ops.options import Options, fake_results_in, graph_is_kept, kinds_to_read, reduce_values, sums_by_kind
from sadkernels.ops.row_weights import RowWeights, row_weights

_LEAVES = 3  # inputs that receive gradients; they come first


class Inputs(Protocol):
    """The tensors of a loss, a NamedTuple that begins with the first three; others may stand between these."""

    student_hidden: Tensor  # (..., H)
    student_weight: Tensor  # (V, H)
    student_bias: Tensor | None
    span_ids: Tensor
    normalizer: Tensor | None
    rows: Tensor | None  # (M,) the supervised ones, where the caller knows


class LinearLoss(NamedTuple):
    """A loss from hidden states as its ops are made of it.

    Attributes:
        name: The ops are sad::NAME, sad::NAME_with_grad and sad::NAME_backward.
        inputs: The type of its `Inputs`.
        inputs_schema: How an op's schema lists them.
        options: The type of its options.
        options_schema: How a schema lists these.
        dtype: Of the loss for given inputs.
        state_rows: Numbers that a row's backward needs.
        target: What the given rows (M,) are compared with, from inputs, options and the rows.
    """

    name: str
    inputs: type
    inputs_schema: str
    options: type
    options_schema: str
    dtype: Callable[[Any], torch.dtype]
    state_rows: int
    target: Callable[[Any, Any, Tensor], Target]


def _student(x: Inputs) -> Head:
    return Head(x.student_hidden.flatten(0, -2), x.student_weight, x.student_bias)


def _supervised(x: Inputs, of_rows: RowWeights, o: Options) -> Tensor:
    """The rows that are projected. Finding them waits for the device, unless the caller has."""
    return kinds_to_read(of_rows, o).nonzero().squeeze(-1) if x.rows is None else x.rows


def _results(values: RowValues, rows: Tensor, of_rows: RowWeights, o: Options, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Loss and sums of all rows from the values of those that were projected."""
    projected = RowWeights(of_rows.kinds[rows], of_rows.weights[rows], of_rows.counts)
    if o.reduction == "none":
        by_token = torch.zeros_like(of_rows.weights).index_copy_(0, rows, values.value)
        return by_token.view(shape), sums_by_kind(values, projected)
    return reduce_values(values.value, projected, shape, o), sums_by_kind(values, projected)


def _finished(gradients: Gradients, x: Inputs, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the shapes and dtypes of what they are gradients of, but for float16, which waits for the loss scale.

    Ops return tensors: an empty one stands for a gradient that nobody wants.
    """
    hidden, *others = gradients
    made = (None if hidden is None else hidden.view(x.student_hidden.shape), *others)
    late = x.student_hidden.dtype == torch.float16
    return tuple(like.new_empty(0) if g is None else g if late else g.to(x.student_weight.dtype) for g in made)


def _fake_gradients(x: Inputs, wants: list[bool], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    late = x.student_hidden.dtype == torch.float16
    leaves = (x.student_hidden, x.student_weight, x.student_bias)
    dtype = torch.float32 if late else x.student_weight.dtype
    return tuple(
        x.new_empty(x.shape, dtype=dtype) if want and x is not None else like.new_empty(0) for x, want in zip(leaves, wants)
    )


def register(loss: LinearLoss) -> None:
    """Defines the three ops of a loss."""
    count, inputs = len(loss.inputs._fields), loss.inputs_schema
    settings = f"{loss.options_schema}, int chunk_bytes"

    def taken(arguments: tuple) -> tuple[Any, tuple]:
        return loss.inputs(*arguments[:count]), arguments[count:]

    def weigh(x: Inputs, o: Options) -> RowWeights:
        lambdas = (o.lambda_reason, o.lambda_act)
        return row_weights(x.span_ids, x.normalizer, lambdas, o.reduction, o.shift, loss.dtype(x))

    @torch.library.custom_op(
        f"sad::{loss.name}_with_grad",
        mutates_args=(),
        schema=f"({inputs}, {settings}, bool[] wants) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    )
    def with_grad(*arguments):
        """Loss, sums, counts, and the gradients of the student's hidden states, weight and bias where upstream is 1."""
        x, (*options, chunk_bytes, wants) = taken(arguments)
        o = loss.options(*options)
        of_rows, student = weigh(x, o), _student(x)
        rows = _supervised(x, of_rows, o)
        into = linear_chunks.new_gradients(student, wants, o.vocab_size if len(rows) else 0)
        values = linear_chunks.forward_backward(student, loss.target(x, o, rows), rows, of_rows, o, chunk_bytes, into)
        value, sums = _results(values, rows, of_rows, o, x.span_ids.shape)
        return value, sums, of_rows.counts, *_finished(into, x, value)

    @with_grad.register_fake
    def _(*arguments):
        x, (*options, _, wants) = taken(arguments)
        value, sums, counts = fake_results_in(loss.dtype(x), x.span_ids, loss.options(*options))
        return value, sums, counts, *_fake_gradients(x, wants, value)

    @torch.library.custom_op(
        f"sad::{loss.name}", mutates_args=(), schema=f"({inputs}, {settings}) -> (Tensor, Tensor, Tensor, Tensor)"
    )
    def forward(*arguments):
        """Loss, sums, counts, and the state (K, N) that the backward needs, zeros for rows that were not projected."""
        x, (*options, chunk_bytes) = taken(arguments)
        o = loss.options(*options)
        of_rows = weigh(x, o)
        rows = _supervised(x, of_rows, o)
        values = linear_chunks.forward(_student(x), loss.target(x, o, rows), rows, of_rows, o, chunk_bytes)
        value, sums = _results(values, rows, of_rows, o, x.span_ids.shape)
        state = value.new_zeros((loss.state_rows, x.span_ids.numel())).index_copy_(1, rows, values.state)
        return value, sums, of_rows.counts, state

    @forward.register_fake
    def _(*arguments):
        x, (*options, _) = taken(arguments)
        value, sums, counts = fake_results_in(loss.dtype(x), x.span_ids, loss.options(*options))
        return value, sums, counts, value.new_empty((loss.state_rows, x.span_ids.numel()))

    @torch.library.custom_op(
        f"sad::{loss.name}_backward",
        mutates_args=(),
        schema=f"({inputs}, Tensor state, Tensor upstream, {settings}, bool[] wants) -> (Tensor, Tensor, Tensor)",
    )
    def backward(*arguments):
        x, (state, upstream, *options, chunk_bytes, wants) = taken(arguments)
        o = loss.options(*options)
        of_rows, student = weigh(x, o), _student(x)
        weights = torch.where(of_rows.weights != 0, of_rows.weights * upstream.reshape(-1).to(of_rows.weights.dtype), 0)
        of_rows = of_rows._replace(weights=weights)
        rows = _supervised(x, of_rows, o)
        into = linear_chunks.new_gradients(student, wants, o.vocab_size if len(rows) else 0)
        linear_chunks.backward(student, loss.target(x, o, rows), rows, of_rows, state[:, rows], o, chunk_bytes, into)
        return _finished(into, x, state)

    @backward.register_fake
    def _(*arguments):
        x, (state, *_, wants) = taken(arguments)
        return _fake_gradients(x, wants, state)


def _op(name: str):
    return getattr(torch.ops.sad, name)


def _detached(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [x if x is None else x.detach() for x in tensors]


class _GradientInForward(torch.autograd.Function):
    """Keeps the gradients and nothing else between forward and backward."""

    @staticmethod
    def forward(ctx, name, settings, *tensors):
        wants = list(ctx.needs_input_grad[2 : 2 + _LEAVES])
        value, sums, counts, *gradients = _op(f"{name}_with_grad")(*_detached(tensors), *settings, wants)
        ctx.save_for_backward(*gradients)
        ctx.wants, ctx.dtype, ctx.others = wants, tensors[0].dtype, len(tensors) - _LEAVES
        ctx.mark_non_differentiable(sums, counts)
        return value, sums, counts

    @staticmethod
    def backward(ctx, upstream, *_):
        kept = graph_is_kept()
        scaled = (_scaled(g, upstream, want, kept, ctx.dtype) for g, want in zip(ctx.saved_tensors, ctx.wants))
        return None, None, *scaled, *[None] * ctx.others


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
    """Keeps the inputs and a few numbers a row."""

    @staticmethod
    def forward(ctx, name, settings, *tensors):
        value, sums, counts, state = _op(name)(*_detached(tensors), *settings)
        ctx.save_for_backward(*tensors, state)
        ctx.name, ctx.settings, ctx.wants = name, settings, list(ctx.needs_input_grad[2 : 2 + _LEAVES])
        ctx.mark_non_differentiable(sums, counts)
        return value, sums, counts

    @staticmethod
    def backward(ctx, upstream, *_):
        gradients = _op(f"{ctx.name}_backward")(*ctx.saved_tensors, upstream, *ctx.settings, ctx.wants)
        dtype, others = ctx.saved_tensors[0].dtype, len(ctx.saved_tensors) - 1 - _LEAVES
        return None, None, *(g.to(dtype) if want else None for g, want in zip(gradients, ctx.wants)), *[None] * others


def apply(name: str, x: Inputs, options: Options, chunk_bytes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, sums (2, 4) and counts (2,), by the way to the gradient that fits; arguments have been checked."""
    settings = (*options, chunk_bytes)
    if not torch.is_grad_enabled() or not any(leaf is not None and leaf.requires_grad for leaf in x[:_LEAVES]):
        return _op(name)(*x, *settings)[:3]
    way = _GradientInBackward if options.reduction == "none" else _GradientInForward
    return way.apply(name, settings, *x)
