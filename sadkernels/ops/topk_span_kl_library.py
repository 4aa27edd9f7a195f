"""The loss against listed columns and labels as `torch.library` ops with fakes and autograd, once for all backends.

The two ways to the gradient are those of `span_kl_library`: one pass for a scalar loss of float32 or bfloat16 logits, two
for `reduction="none"` and float16.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels import backends
from sadkernels.divergence import DivergenceConfig, RowValues
from sadkernels.ops.options import fake_results_in, graph_is_kept, kinds_to_read, reduce_values, sums_by_kind
from sadkernels.ops.row_weights import RowWeights, row_weights
from sadkernels.row_layout import with_row_layout
from sadkernels.topk import TopkTarget, TopkValues, row_labels, topk_target


class Targets(NamedTuple):
    """What the rows are compared with, and which count: every op takes these after the student's logits."""

    logprobs: Tensor | None  # (..., k)
    ids: Tensor | None  # (..., k)
    target_ids: Tensor | None  # (...,)
    span_ids: Tensor  # (...,)
    normalizer: Tensor | None


class Options(NamedTuple):
    """What every op takes after its tensors, in this order."""

    lambda_reason: float
    lambda_act: float
    reduction: str
    shift: bool
    stats: bool
    backend: str
    tail: str
    alpha: float
    vocab_size: int
    temperature: float
    scale: float
    softcap: float | None

    @property
    def comparison(self) -> DivergenceConfig:
        """What the kernels need to know of the student."""
        return DivergenceConfig(self.vocab_size, self.temperature, student_scale=self.scale, student_softcap=self.softcap)


OPTIONS_SCHEMA = (
    "float lambda_reason, float lambda_act, str reduction, bool shift, bool stats, str backend, str tail, float alpha, "
    "SymInt vocab_size, float temperature, float scale, float? softcap"
)
_TARGETS = "Tensor? logprobs, Tensor? ids, Tensor? target_ids, Tensor span_ids, Tensor? normalizer"
_N_TARGETS = len(Targets._fields)


def _dtypes(student: Tensor, t: Targets) -> tuple[torch.dtype, ...]:
    return (student.dtype,) if t.logprobs is None else (student.dtype, t.logprobs.dtype)


def loss_dtype(student: Tensor, t: Targets) -> torch.dtype:
    return torch.float64 if torch.float64 in _dtypes(student, t) else torch.float32


def kernel_for(student: Tensor, t: Targets, o: Options) -> ModuleType:
    """The backend's module. Chosen inside the ops, where torch.compile does not look."""
    name = backends.resolve(o.backend, "topk_span_kl", student.device, *_dtypes(student, t), columns=o.vocab_size)
    return backends.implementation(name, "topk_span_kl")


def _rows(student: Tensor, t: Targets, o: Options) -> RowWeights:
    lambdas = (o.lambda_reason, o.lambda_act)
    return row_weights(t.span_ids, t.normalizer, lambdas, o.reduction, o.shift, loss_dtype(student, t))


def _listed(student: Tensor, t: Targets, o: Options) -> TopkTarget:
    labels = None if t.target_ids is None else row_labels(t.target_ids, o.vocab_size, o.shift)
    config = {"vocab_size": o.vocab_size, "tail": o.tail, "alpha": o.alpha, "dtype": loss_dtype(student, t)}
    return topk_target(t.logprobs, t.ids, labels, **config)


def row_values(found: TopkValues, target: TopkTarget) -> RowValues:
    """What all losses have in common, of the rows of one against listed columns."""
    if found.entropy is None:
        return RowValues(found.value, found.state)
    entropies = torch.stack([target.entropy(), found.entropy])
    return RowValues(found.value, found.state, entropies, torch.stack([found.argmax.int(), target.best()]))


def _results(values: TopkValues, target: TopkTarget, rows: RowWeights, shape, o: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, sums (2, 4) and counts (2,)."""
    return reduce_values(values.value, rows, shape, o), sums_by_kind(row_values(values, target), rows), rows.counts


def _fakes(student: Tensor, t: Targets, o: Options) -> tuple[Tensor, Tensor, Tensor]:
    return fake_results_in(loss_dtype(student, t), t.span_ids, o)


# --- two passes: an op with its gradient registered ---


@torch.library.custom_op(
    "sad::topk_span_kl",
    mutates_args=(),
    schema=f"(Tensor student, {_TARGETS}, {OPTIONS_SCHEMA}, bool inplace_backward) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _topk_span_kl(student, *arguments):
    """Loss, sums, counts, and the state (2, N) that the backward needs."""
    t, o = Targets(*arguments[:_N_TARGETS]), Options(*arguments[_N_TARGETS:-1])
    rows, target = _rows(student, t, o), _listed(student, t, o)
    values = kernel_for(student, t, o).forward(
        with_row_layout(student), target, kinds_to_read(rows, o), o.comparison, stats=o.stats
    )
    return *_results(values, target, rows, t.span_ids.shape, o), values.state


@_topk_span_kl.register_fake
def _(student, *arguments):
    t, o = Targets(*arguments[:_N_TARGETS]), Options(*arguments[_N_TARGETS:-1])
    loss, sums, counts = _fakes(student, t, o)
    return loss, sums, counts, loss.new_empty((2, t.span_ids.numel()))


def _backward(grad: Tensor, student: Tensor, t: Targets, state: Tensor, upstream: Tensor, o: Options) -> None:
    rows = _rows(student, t, o)
    weights = torch.where(rows.weights != 0, rows.weights * upstream.reshape(-1).to(rows.weights.dtype), 0)
    kinds = rows.kinds * (rows.weights != 0)
    kernel_for(student, t, o).backward(
        with_row_layout(student), _listed(student, t, o), kinds, state, weights, o.comparison, grad=grad
    )


@torch.library.custom_op(
    "sad::topk_span_kl_backward",
    mutates_args=(),
    schema=f"(Tensor student, {_TARGETS}, Tensor state, Tensor upstream, {OPTIONS_SCHEMA}) -> Tensor",
)
def _topk_span_kl_backward(student, *arguments):
    t, (state, upstream, *options) = Targets(*arguments[:_N_TARGETS]), arguments[_N_TARGETS:]
    o = Options(*options)
    grad = kernel_for(student, t, o).new_logits(student.shape, student)
    _backward(grad, student, t, state, upstream, o)
    return grad


@_topk_span_kl_backward.register_fake
def _(student, *arguments):
    return student.new_empty(student.shape)


@torch.library.custom_op(
    "sad::topk_span_kl_backward_",
    mutates_args=("student",),
    schema=f"(Tensor(a!) student, {_TARGETS}, Tensor state, Tensor upstream, {OPTIONS_SCHEMA}) -> ()",
)
def _topk_span_kl_backward_(student, *arguments):
    t, (state, upstream, *options) = Targets(*arguments[:_N_TARGETS]), arguments[_N_TARGETS:]
    _backward(student, student, t, state, upstream, Options(*options))


@_topk_span_kl_backward_.register_fake
def _(student, *arguments):
    return None


def _setup_context(ctx, inputs, output):
    student, *arguments = inputs
    ctx.options, ctx.inplace_backward = arguments[_N_TARGETS:-1], arguments[-1]
    _, sums, counts, state = output
    ctx.mark_non_differentiable(sums, counts, state)
    ctx.save_for_backward(student, *arguments[:_N_TARGETS], state)


def _two_pass_backward(ctx, upstream, *_):
    student, *saved = ctx.saved_tensors
    if ctx.inplace_backward:
        grad = student.detach()
        torch.ops.sad.topk_span_kl_backward_(grad, *saved, upstream, *ctx.options)
    else:
        grad = torch.ops.sad.topk_span_kl_backward(student, *saved, upstream, *ctx.options)
    return grad, *(None for _ in range(_N_TARGETS + len(ctx.options) + 1))


_topk_span_kl.register_autograd(_two_pass_backward, setup_context=_setup_context)


# --- one pass: the forward writes the gradient ---


def _forward_backward(grad: Tensor, student: Tensor, arguments: tuple) -> tuple[Tensor, Tensor, Tensor]:
    t, o = Targets(*arguments[:_N_TARGETS]), Options(*arguments[_N_TARGETS:])
    rows, target = _rows(student, t, o), _listed(student, t, o)
    values = kernel_for(student, t, o).forward_backward(
        with_row_layout(student), target, kinds_to_read(rows, o), rows.weights, o.comparison, stats=o.stats, grad=grad
    )
    return _results(values, target, rows, t.span_ids.shape, o)


@torch.library.custom_op(
    "sad::topk_span_kl_with_grad",
    mutates_args=(),
    schema=f"(Tensor student, {_TARGETS}, {OPTIONS_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _topk_span_kl_with_grad(student, *arguments):
    t, o = Targets(*arguments[:_N_TARGETS]), Options(*arguments[_N_TARGETS:])
    grad = kernel_for(student, t, o).new_logits(student.shape, student)
    return *_forward_backward(grad, student, arguments), grad


@_topk_span_kl_with_grad.register_fake
def _(student, *arguments):
    fakes = _fakes(student, Targets(*arguments[:_N_TARGETS]), Options(*arguments[_N_TARGETS:]))
    return *fakes, student.new_empty(student.shape)


@torch.library.custom_op(
    "sad::topk_span_kl_with_grad_",
    mutates_args=("student",),
    schema=f"(Tensor(a!) student, {_TARGETS}, {OPTIONS_SCHEMA}) -> (Tensor, Tensor, Tensor)",
)
def _topk_span_kl_with_grad_(student, *arguments):
    return _forward_backward(student, student, arguments)


@_topk_span_kl_with_grad_.register_fake
def _(student, *arguments):
    return _fakes(student, Targets(*arguments[:_N_TARGETS]), Options(*arguments[_N_TARGETS:]))


class _OnePass(torch.autograd.Function):
    """Keeps the gradient and nothing else between forward and backward."""

    @staticmethod
    def forward(ctx, student, logprobs, ids, target_ids, span_ids, normalizer, options, inplace_backward):
        arguments = (logprobs, ids, target_ids, span_ids, normalizer, *options)
        grad = student.detach()  # shares the version counter: whoever saved these logits is told of a write
        if inplace_backward:
            loss, sums, counts = torch.ops.sad.topk_span_kl_with_grad_(grad, *arguments)
        else:
            loss, sums, counts, grad = torch.ops.sad.topk_span_kl_with_grad(grad, *arguments)
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
        return grad, None, None, None, None, None, None, None


def topk_span_kl_op(
    student: Tensor, targets: Targets, options: Options, inplace_backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, sums (2, 4) and counts (2,), by the way to the gradient that fits; arguments have been checked."""
    needs_grad = torch.is_grad_enabled() and student.requires_grad
    if needs_grad and options.reduction != "none" and student.dtype != torch.float16:
        return _OnePass.apply(student, *targets, options, inplace_backward)
    return torch.ops.sad.topk_span_kl(student, *targets, *options, inplace_backward)[:3]
