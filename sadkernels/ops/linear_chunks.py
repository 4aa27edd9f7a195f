"""The losses from hidden states, a chunk of rows at a time: what lies between the student's head and a kernel.

Only supervised rows are gathered and projected; what they are compared with is a `Target`'s affair. A chunk's logits become
their own gradient in place, are multiplied back onto hidden states and head while they are at hand, and make room for the
next chunk: no head is computed twice, and no buffer has N rows of V columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig, RowValues
from sadkernels.ops.options import kinds_to_read
from sadkernels.ops.row_weights import RowWeights

_COLUMNS_AT_ONCE = 512  # of a float32 product on a CPU, which MKL computes 1.6 times as fast in such slices
_FLOAT16_WEIGHT = 1024.0  # the largest row weight becomes this: a gradient of 6e-11 is kept, one of 60 does not overflow


class Head(NamedTuple):
    """Rows of hidden states (N, H) and what makes logits of them: weight (V, H), bias (V,) or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def columns(self, count: int) -> Head:
        """The first `count` columns of the vocabulary alone."""
        return Head(self.hidden, self.weight[:count], None if self.bias is None else self.bias[:count])

    def project(self, rows: Tensor, out: Tensor) -> None:
        """Writes the logits of the given hidden states (n, H) to `out` (n, V)."""
        in_slices = rows.dtype == torch.float32 and rows.device.type == "cpu"
        width = _COLUMNS_AT_ONCE if in_slices else len(self.weight)
        biases = itertools.repeat(None) if self.bias is None else self.bias.split(width)
        for logits, weight, bias in zip(out.split(width, dim=1), self.weight.split(width), biases):
            if bias is None:
                torch.mm(rows, weight.t(), out=logits)
            else:
                torch.addmm(bias, rows, weight.t(), out=logits)


class Gradients(NamedTuple):
    """Where the gradients of the student's hidden states, weight and bias go; None for those that nobody wants."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Options(Protocol):
    """What the ops' options tell this module."""

    stats: bool
    reduction: str
    vocab_size: int

    @property
    def comparison(self) -> DivergenceConfig: ...


class Target(Protocol):
    """What the student's rows are compared with, known to the kernel as the argument behind the student's logits.

    `state_rows` is how many numbers a row's state has, `row_bytes` what a row takes besides the student's logits.
    """

    kernel: ModuleType
    state_rows: int
    row_bytes: int

    def of_rows(self, rows: Tensor, place: slice) -> Any:
        """For the rows of these numbers (n,), which are at `place` among all that are projected; until the next call."""

    def row_values(self, found: Any, target: Any) -> RowValues:
        """What the kernel found when it compared with `target`, in the form that all losses share."""


class Chunk(NamedTuple):
    """Some rows on their way: their numbers, their place among those projected, hidden states, logits, and a target."""

    rows: Tensor
    place: slice
    hidden: Tensor
    logits: Tensor
    target: Any


def chunks(student: Head, target: Target, rows: Tensor, chunk_bytes: int) -> Iterator[Chunk]:
    """Chunks of about equal size that take at most `chunk_bytes` (but one row at least)."""
    vocab = student.weight.shape[0]
    row_bytes = vocab * student.hidden.element_size() + target.row_bytes
    count = -(-len(rows) // max(1, chunk_bytes // row_bytes))
    size = -(-len(rows) // max(1, count))
    logits = target.kernel.new_logits((size, vocab), student.hidden)
    for number, some in enumerate(rows.split(size) if size else ()):
        place = slice(number * size, number * size + len(some))
        hidden = student.hidden.index_select(0, some)
        student.project(hidden, logits[: len(some)])
        yield Chunk(some, place, hidden, logits[: len(some)], target.of_rows(some, place))


def new_gradients(student: Head, wants: list[bool], written: int) -> Gradients:
    """Memory for the gradients that are wanted: zeros, but for the first `written` rows of the weight's, which may hold
    anything until the first chunk writes them.

    Sums over chunks are float32 for 16-bit weights. With float16 all are, until the loss scale is known.
    """
    dtype = student.hidden.dtype
    summed = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    of_rows = torch.float32 if dtype == torch.float16 else dtype
    hidden, weight, bias = wants
    of_weight = None
    if weight:
        of_weight = torch.empty_like(student.weight, dtype=summed, memory_format=torch.contiguous_format)
        of_weight[written:].zero_()
    return Gradients(
        torch.zeros_like(student.hidden, dtype=of_rows, memory_format=torch.contiguous_format) if hidden else None,
        of_weight,
        torch.zeros_like(student.bias, dtype=summed) if bias and student.bias is not None else None,
    )


def _add_product(total: Tensor, a: Tensor, b: Tensor, anew: bool) -> None:
    """total += a b, or total = a b if `anew`, in the total's precision where the hardware can."""
    if a.dtype == torch.float16 and not a.is_cuda:  # whose range a sum over rows may leave
        a, b = a.to(total.dtype), b.to(total.dtype)
    if total.dtype == a.dtype:
        total.addmm_(a, b, beta=0 if anew else 1)  # with 0 it is not read
        return
    product = torch.mm(a, b, out_dtype=total.dtype) if a.is_cuda else torch.mm(a, b)
    if anew:
        total.copy_(product)
    else:
        total.add_(product)


def _multiply_back(chunk: Chunk, student: Head, into: Gradients, vocab: int) -> None:
    """From the gradient of the logits, which is where they were, to those of everything before."""
    of_logits = chunk.logits
    if into.hidden is not None:
        into.hidden.index_copy_(0, chunk.rows, torch.mm(of_logits, student.weight).to(into.hidden.dtype))
    if into.weight is not None:
        _add_product(into.weight[:vocab], of_logits.t(), chunk.hidden, anew=chunk.place.start == 0)
    if into.bias is not None:
        into.bias[:vocab].add_(of_logits.sum(0, dtype=into.bias.dtype))


class _Collected:
    """The values of all rows, put together from those of chunks."""

    def __init__(self) -> None:
        self._parts: list[RowValues] = []

    def add(self, values: RowValues) -> None:
        self._parts.append(values)

    def whole(self, like: Tensor, state_rows: int, stats: bool) -> RowValues:
        """Of all chunks, in their order; of no rows at all in the dtype of `like`."""
        if not self._parts:
            empty = like.new_empty(0)
            pair = like.new_empty((2, 0)) if stats else None
            return RowValues(empty, like.new_empty((state_rows, 0)), pair, pair)
        fields = zip(*self._parts)
        return RowValues(*(None if field[0] is None else torch.cat(field, dim=-1) for field in fields))


def forward(student: Head, target: Target, rows: Tensor, of_rows: RowWeights, o: Options, chunk_bytes: int) -> RowValues:
    """The values of `rows`, with the state that `backward` needs."""
    found, config = _Collected(), o.comparison
    kinds = kinds_to_read(of_rows, o)
    for chunk in chunks(student.columns(o.vocab_size), target, rows, chunk_bytes):
        values = target.kernel.forward(chunk.logits, chunk.target, kinds[chunk.rows], config, stats=o.stats)
        found.add(target.row_values(values, chunk.target))
    return found.whole(of_rows.weights, target.state_rows, o.stats)


def backward(
    student: Head,
    target: Target,
    rows: Tensor,
    of_rows: RowWeights,
    state: Tensor,
    o: Options,
    chunk_bytes: int,
    into: Gradients,
) -> None:
    """Adds the gradients for the weights of `of_rows`; `state` (K, M) is that of the M `rows`. Projects them once more."""
    narrow = student.columns(o.vocab_size)
    kinds = of_rows.kinds * (of_rows.weights != 0)
    weights, unscale = _scaled(of_rows.weights, student.hidden.dtype)
    for chunk in chunks(narrow, target, rows, chunk_bytes):
        given = (kinds[chunk.rows], state[:, chunk.place].contiguous(), weights[chunk.rows], o.comparison)
        target.kernel.backward(chunk.logits, chunk.target, *given, grad=chunk.logits)
        _multiply_back(chunk, narrow, into, o.vocab_size)
    _multiply(into, unscale)


def forward_backward(
    student: Head, target: Target, rows: Tensor, of_rows: RowWeights, o: Options, chunk_bytes: int, into: Gradients
) -> RowValues:
    """The values of `rows`, and the gradients from the same logits."""
    found, narrow, config = _Collected(), student.columns(o.vocab_size), o.comparison
    kinds = kinds_to_read(of_rows, o)
    weights, unscale = _scaled(of_rows.weights, student.hidden.dtype)
    for chunk in chunks(narrow, target, rows, chunk_bytes):
        given = (chunk.target, kinds[chunk.rows], weights[chunk.rows], config)
        values = target.kernel.forward_backward(chunk.logits, *given, stats=o.stats, grad=chunk.logits)
        found.add(target.row_values(values, chunk.target))
        _multiply_back(chunk, narrow, into, o.vocab_size)
    _multiply(into, unscale)
    return found.whole(of_rows.weights, target.state_rows, o.stats)


def _scaled(weights: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Row weights under which float16 keeps small gradients, and the power of two that undoes it; None if not needed."""
    if dtype != torch.float16:
        return weights, None
    largest = weights.abs().amax() if weights.numel() else weights.new_zeros(())
    exponent = torch.where(largest > 0, torch.floor(torch.log2(_FLOAT16_WEIGHT / largest)), 0)
    return weights * torch.exp2(exponent), torch.exp2(-exponent)


def _multiply(gradients: Gradients, by: Tensor | None) -> None:
    for gradient in gradients:
        if gradient is not None and by is not None:
            gradient.mul_(by)
