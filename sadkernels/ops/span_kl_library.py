"""The span KL on logits as `torch.library` ops with fakes and autograd, once for all backends.

Two ways to the gradient, same values:

* one pass (a scalar loss of float32 or bfloat16 logits): the forward knows each row's weight, so it leaves the gradient
  behind while the logits are at hand, and the backward multiplies by the upstream gradient only if that is not 1;
* two passes (`reduction="none"`, whose row weights are known in the backward only; float16, where a gradient stored
  before the loss scale is applied would underflow; and a vocabulary shared by several processes, which must first hear from
  each other): the forward keeps three numbers a row, the backward reads the logits again.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels import backends
from sadkernels.comparison import Comparison, RowValues
from sadkernels.kinds import SpanKind
from sadkernels.ops import vocab_parallel
from sadkernels.ops.row_weights import RowWeights, row_kinds, row_weights
from sadkernels.rows import with_row_layout


class Options(NamedTuple):
    """What every op below takes after its tensors, in this order; the fields of `Comparison` last."""

    lambda_reason: float
    lambda_act: float
    reduction: str
    shift: bool
    stats: bool
    backend: str
    group: str  # the name of the process group that shares the vocabulary; empty: nobody does
    vocab_size: int
    temperature: float = 1.0
    divergence: str = "forward_kl"
    beta: float = 0.5
    student_scale: float = 1.0
    teacher_scale: float = 1.0
    student_softcap: float | None = None
    teacher_softcap: float | None = None

    @property
    def comparison(self) -> Comparison:
        """What the kernels need to know."""
        return Comparison(*self[-len(Comparison._fields) :])


_OPTIONS = (
    "float lambda_reason, float lambda_act, str reduction, bool shift, bool stats, str backend, str group, "
    "SymInt vocab_size, float temperature, str divergence, float beta, float student_scale, float teacher_scale, "
    "float? student_softcap, float? teacher_softcap"
)


def _loss_dtype(student: Tensor, teacher: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32


def _rows(student: Tensor, teacher: Tensor, span_ids: Tensor, normalizer: Tensor | None, o: Options) -> RowWeights:
    lambdas = (o.lambda_reason, o.lambda_act)
    return row_weights(span_ids, normalizer, lambdas, o.reduction, o.shift, _loss_dtype(student, teacher))


def _kernel(backend: str, *logits: Tensor) -> ModuleType:
    """The backend's module. Chosen inside the ops, where torch.compile does not look."""
    name = backends.resolve(backend, "span_kl", logits[0].device, *(x.dtype for x in logits))
    return backends.implementation(name, "span_kl")


def _read(rows: RowWeights, o: Options) -> Tensor:
    """The kinds of the rows that must be read: one whose lambda is 0 counts, but only statistics look at it."""
    return rows.kinds if o.stats or o.reduction == "none" else rows.kinds * (rows.weights != 0)


def _reduce(value: Tensor, rows: RowWeights, shape: torch.Size, o: Options) -> Tensor:
    if o.reduction == "none":
        return value.view(shape)
    return torch.where(rows.weights != 0, rows.weights * value, 0).sum()


def _sums(values: RowValues, rows: RowWeights) -> Tensor:
    """(2, 4): sums of divergence, teacher entropy, student entropy and agreements over reason and act rows."""
    if values.entropies is None:
        return values.value.new_empty((0, 4))
    agree = values.argmax[0] == values.argmax[1]
    by_row = torch.cat([values.value[None], values.entropies, agree[None]])
    kinds = (SpanKind.REASON, SpanKind.ACT)
    return torch.stack([torch.where(rows.kinds == kind, by_row, 0).sum(-1) for kind in kinds])


def _fakes(student: Tensor, teacher: Tensor, span_ids: Tensor, o: Options) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _loss_dtype(student, teacher)
    loss = student.new_empty(span_ids.shape if o.reduction == "none" else (), dtype=dtype)
    sums = student.new_empty((2 if o.stats else 0, 4), dtype=dtype)
    return loss, sums, student.new_empty((2,), dtype=torch.int64)


# --- two passes: an op with its gradient registered ---


@torch.library.custom_op(
    "sad::span_kl",
    mutates_args=(),
    schema=f"(Tensor student, Tensor teacher, Tensor span_ids, Tensor? normalizer, {_OPTIONS}, bool inplace_backward)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _span_kl(student, teacher, span_ids, normalizer, *options):
    """Loss, sums, counts, and the state (3, N) that the backward needs."""
    o = Options(*options[:-1])
    rows = _rows(student, teacher, span_ids, normalizer, o)
    kernel = _kernel(o.backend, student, teacher)
    logits = with_row_layout(student), with_row_layout(teacher)
    if o.group:
        values = vocab_parallel.forward(kernel, *logits, _read(rows, o), o.comparison, stats=o.stats, group=o.group)
    else:
        values = kernel.forward(*logits, _read(rows, o), o.comparison, stats=o.stats)
    return _reduce(values.value, rows, span_ids.shape, o), _sums(values, rows), rows.counts, values.state


@_span_kl.register_fake
def _(student, teacher, span_ids, normalizer, *options):
    loss, sums, counts = _fakes(student, teacher, span_ids, Options(*options[:-1]))
    return loss, sums, counts, loss.new_empty((3, span_ids.numel()))


def _backward(grad: Tensor, student, teacher, span_ids, normalizer, state, upstream, options) -> None:
    o = Options(*options)
    rows = _rows(student, teacher, span_ids, normalizer, o)
    weights = torch.where(rows.weights != 0, rows.weights * upstream.reshape(-1).to(rows.weights.dtype), 0)
    _kernel(o.backend, student, teacher).backward(
        with_row_layout(student),
        with_row_layout(teacher),
        rows.kinds * (rows.weights != 0),
        state,
        weights,
        o.comparison,
        grad=grad,
    )


_BACKWARD_TENSORS = "Tensor teacher, Tensor span_ids, Tensor? normalizer, Tensor state, Tensor upstream"


@torch.library.custom_op(
    "sad::span_kl_backward", mutates_args=(), schema=f"(Tensor student, {_BACKWARD_TENSORS}, {_OPTIONS}) -> Tensor"
)
def _span_kl_backward(student, teacher, span_ids, normalizer, state, upstream, *options):
    grad = _kernel(Options(*options).backend, student, teacher).new_gradient(student)
    _backward(grad, student, teacher, span_ids, normalizer, state, upstream, options)
    return grad


@_span_kl_backward.register_fake
def _(student, teacher, span_ids, normalizer, state, upstream, *options):
    return student.new_empty(student.shape)


@torch.library.custom_op(
    "sad::span_kl_backward_",
    mutates_args=("student",),
    schema=f"(Tensor(a!) student, {_BACKWARD_TENSORS}, {_OPTIONS}) -> ()",
)
def _span_kl_backward_(student, teacher, span_ids, normalizer, state, upstream, *options):
    _backward(student, student, teacher, span_ids, normalizer, state, upstream, options)


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
    rows = _rows(student, teacher, span_ids, normalizer, o)
    kernel = _kernel(o.backend, student, teacher)
    logits = with_row_layout(student), with_row_layout(teacher)
    values = kernel.forward_backward(*logits, _read(rows, o), rows.weights, o.comparison, stats=o.stats, grad=grad)
    return _reduce(values.value, rows, span_ids.shape, o), _sums(values, rows), rows.counts


@torch.library.custom_op(
    "sad::span_kl_with_grad",
    mutates_args=(),
    schema=f"(Tensor student, Tensor teacher, Tensor span_ids, Tensor? normalizer, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def _span_kl_with_grad(student, teacher, span_ids, normalizer, *options):
    grad = _kernel(Options(*options).backend, student, teacher).new_gradient(student)
    return *_forward_backward(grad, student, teacher, span_ids, normalizer, options), grad


@_span_kl_with_grad.register_fake
def _(student, teacher, span_ids, normalizer, *options):
    return *_fakes(student, teacher, span_ids, Options(*options)), student.new_empty(student.shape)


@torch.library.custom_op(
    "sad::span_kl_with_grad_",
    mutates_args=("student",),
    schema=f"(Tensor(a!) student, Tensor teacher, Tensor span_ids, Tensor? normalizer, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor)",
)
def _span_kl_with_grad_(student, teacher, span_ids, normalizer, *options):
    return _forward_backward(student, student, teacher, span_ids, normalizer, options)


@_span_kl_with_grad_.register_fake
def _(student, teacher, span_ids, normalizer, *options):
    return _fakes(student, teacher, span_ids, Options(*options))


@torch.library.custom_op(
    "sad::scale_supervised_rows_",
    mutates_args=("grad",),
    schema="(Tensor(a!) grad, Tensor span_ids, Tensor factor, bool shift, str backend) -> ()",
)
def _scale_supervised_rows_(grad, span_ids, factor, shift, backend):
    _kernel(backend, grad).scale(grad, row_kinds(span_ids, shift), factor)


@_scale_supervised_rows_.register_fake
def _(grad, span_ids, factor, shift, backend):
    return None


def _graph_is_kept() -> bool:
    """Whether this backward was started with `retain_graph=True`; assumed so where PyTorch cannot tell."""
    if torch.compiler.is_compiling():
        return False
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is None or ask()


class _OnePass(torch.autograd.Function):
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
        if _graph_is_kept() and not ctx.inplace_backward:
            grad = grad.clone()
        torch.ops.sad.scale_supervised_rows_(grad, span_ids, upstream, ctx.shift, ctx.backend)
        return grad, None, None, None, None, None


def span_kl_op(
    student: Tensor, teacher: Tensor, span_ids: Tensor, normalizer: Tensor | None, options: Options, inplace_backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, sums (2, 4) and counts (2,), by the way to the gradient that fits; arguments have been checked."""
    needs_grad = torch.is_grad_enabled() and student.requires_grad
    if needs_grad and options.reduction != "none" and student.dtype != torch.float16 and not options.group:
        return _OnePass.apply(student, teacher, span_ids, normalizer, options, inplace_backward)
    return torch.ops.sad.span_kl(student, teacher, span_ids, normalizer, *options, inplace_backward)[:3]
