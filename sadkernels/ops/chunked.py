"""The losses from hidden states: the student's head is applied to one chunk of supervised rows at a time.

Logits are float32 also for 16-bit operands: q - p is a small difference, and logits that are rounded to 16 bits make its
error 10 % and more when student and teacher are close. The gradient is rounded only for the products that carry it back.

Only supervised rows are gathered and projected. A `Target` supplies the teacher side of each chunk. The kernel overwrites
the chunk's logits with their gradient, which is multiplied onto hidden states and head at once; then the next chunk uses the
same memory. So no head is projected twice, and no buffer has N x V elements.
"""

from __future__ import annotations

import abc
import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sadkernels.divergence import RowValues
from sadkernels.ops.autograd import LossOp
from sadkernels.ops.row_weights import RowWeights, reduce_values, sums_by_kind

_COLUMNS_AT_ONCE = 512  # of a product on a CPU: MKL computes such slices faster than the whole (docs/benchmarks.md)
_16_BIT = (torch.bfloat16, torch.float16)


class Head(NamedTuple):
    """Hidden states (N, H) and the head that projects them: weight (V, H), bias (V,) or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def columns(self, count: int) -> Head:
        """The head of the first `count` columns of the vocabulary."""
        return Head(self.hidden, self.weight[:count], None if self.bias is None else self.bias[:count])

    @property
    def logits_dtype(self) -> torch.dtype:
        """float32 for 16-bit operands, else their dtype."""
        return torch.float32 if self.hidden.dtype in _16_BIT else self.hidden.dtype

    def project(self, rows: Tensor, out: Tensor) -> None:
        """Writes the logits of hidden states `rows` (n, H) to `out` (n, V), in `logits_dtype`."""
        width, dtype = len(self.weight), rows.dtype
        if rows.device.type == "cpu":
            width, dtype = _COLUMNS_AT_ONCE, _cpu_operand_dtype(dtype)
            if dtype == torch.bfloat16 and rows.shape[1] % 2:
                dtype = torch.float32  # oneDNN multiplies in pairs: it would add 0 times the next row, which may be NaN
        rows = rows.to(dtype)
        biases = itertools.repeat(None) if self.bias is None else self.bias.split(width)
        for logits, weight, bias in zip(out.split(width, dim=1), self.weight.split(width), biases):
            _mm(rows, weight.to(dtype).t(), logits)
            if bias is not None:
                logits.add_(bias)


class Target(Protocol):
    """The teacher side of the rows, one chunk at a time.

    Attributes:
        row_bytes: Memory per row of a chunk, besides the student's logits.
    """

    row_bytes: int

    def for_rows(self, rows: Tensor, place: slice) -> Any:
        """The kernel's second argument for these rows; valid until the next call.

        Args:
            rows: (n,), their numbers among all N rows.
            place: Their position among the rows that are projected.
        """


class Chunk(NamedTuple):
    """Rows in progress: their numbers (n,), their position, hidden states (n, H), logits (n, V) and target."""

    rows: Tensor
    place: slice
    hidden: Tensor
    logits: Tensor
    target: Any


class Gradients(NamedTuple):
    """Buffers for the gradients of the student's hidden states (N, H), weight (V, H) and bias (V,); None if not needed.

    Sums over chunks are float32 for 16-bit weights. With float16 all buffers are float32 until the loss scale is applied.
    """

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def allocate(cls, student: Head, wants: list[bool], written: int) -> Gradients:
        """Zeros, except that the first `written` rows of the weight's gradient are uninitialized: the first chunk writes
        them."""
        dtype = student.hidden.dtype
        hidden_dtype = torch.float32 if dtype == torch.float16 else dtype
        hidden = weight = bias = None
        if wants[0]:
            hidden = torch.zeros_like(student.hidden, dtype=hidden_dtype, memory_format=torch.contiguous_format)
        if wants[1]:
            weight = torch.empty_like(student.weight, dtype=student.logits_dtype, memory_format=torch.contiguous_format)
            weight[written:].zero_()
        if wants[2] and student.bias is not None:
            bias = torch.zeros_like(student.bias, dtype=student.logits_dtype)
        return cls(hidden, weight, bias)

    def add(self, chunk: Chunk, student: Head, vocab_size: int, counted: Tensor) -> None:
        """Adds the gradients that follow from the gradient of a chunk's logits, which is in `chunk.logits`.

        Args:
            chunk: The chunk.
            student: The head of the first `vocab_size` columns.
            vocab_size: The number of columns.
            counted: (n,) bool. Rows that do not count may hold NaN, which 0 * NaN would carry into the head.
        """
        if self.bias is not None:
            self.bias[:vocab_size].add_(chunk.logits.sum(0, dtype=self.bias.dtype))
        if self.hidden is None and self.weight is None:
            return
        gradient, unscale = _as_operand(chunk.logits, student.hidden.dtype)
        if self.hidden is not None:
            product = _times_weight(gradient, student.weight)
            self.hidden.index_copy_(0, chunk.rows, _times(product, unscale).to(self.hidden.dtype))
        if self.weight is not None:
            hidden = torch.where(counted[:, None], chunk.hidden, 0).to(gradient.dtype)
            _add_product(self.weight[:vocab_size], gradient, hidden, unscale, first=chunk.place.start == 0)


def _cpu_operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the operands of a product on a CPU: float32 if the CPU multiplies it faster than a 16-bit `dtype`."""
    slow = dtype == torch.float16 or (dtype == torch.bfloat16 and not _has_bfloat16_products())
    return torch.float32 if slow else dtype


@functools.cache
def _has_bfloat16_products() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def _mm(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a b, where `out` is float32 if a and b are 16-bit."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif a.is_cuda:
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        # PyTorch has no product of 16-bit operands with a float32 result on a CPU. The product is summed in float32 and
        # rounded once, so a second one gives the rounding error of the first: together they have twice the digits.
        rounded = torch.mm(a, b)
        out.copy_(rounded).add_(torch.addmm(rounded, a, b, beta=-1))


def _as_operand(gradient: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """A gradient (n, V) of float32 logits for products with operands of `dtype`, and the factor that undoes its scale.

    float16 on a GPU: the gradient is scaled by a power of two, so that it neither overflows nor underflows.
    """
    if gradient.dtype == dtype or (dtype == torch.float16 and not gradient.is_cuda):
        return gradient, None
    if dtype == torch.bfloat16:
        return gradient.to(dtype if gradient.is_cuda else _cpu_operand_dtype(dtype)), None
    largest = gradient.abs().amax()
    exponent = torch.where((largest > 0) & largest.isfinite(), 14 - torch.ceil(torch.log2(largest)), 0)
    return (gradient * torch.exp2(exponent)).to(dtype), torch.exp2(-exponent)


def _times_weight(gradient: Tensor, weight: Tensor) -> Tensor:
    """(n, H) = gradient (n, V) weight (V, H), float32 if the gradient is float32 or the device has such a product."""
    if gradient.is_cuda and gradient.dtype in _16_BIT:
        return torch.mm(gradient, weight, out_dtype=torch.float32)
    if gradient.dtype == weight.dtype:
        return torch.mm(gradient, weight)
    product = gradient.new_zeros((len(gradient), weight.shape[1]))
    for part, some in zip(gradient.split(_COLUMNS_AT_ONCE, dim=1), weight.split(_COLUMNS_AT_ONCE)):
        product.addmm_(part, some.to(gradient.dtype))
    return product


def _add_product(total: Tensor, gradient: Tensor, hidden: Tensor, unscale: Tensor | None, first: bool) -> None:
    """total += gradient^T hidden, or total = gradient^T hidden if `first`; in float32 if the device has such a product."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.t(), hidden, beta=0 if first else 1)  # beta=0: `total` is not read
        return
    on_gpu = {"out_dtype": total.dtype} if gradient.is_cuda else {}
    product = _times(torch.mm(gradient.t(), hidden, **on_gpu), unscale)
    if first:
        total.copy_(product)
    else:
        total.add_(product)


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


class ChunkedOp(LossOp):
    """A loss on hidden states. Its first inputs are `student_hidden` (..., H), `student_weight` (V, H) and `student_bias`
    (V,) or None; its input `rows` (M,) lists the rows to project, or is None."""

    leaves = 3
    writes_in_place = False

    @abc.abstractmethod
    def target(self, x: Any, o: Any) -> Target:
        """The teacher side of the rows."""

    def grad_in_forward(self, x: Any, o: Any) -> bool:
        return o.loss.reduction != "none"

    def gradient_dtype(self, x: Any) -> torch.dtype:
        """float16 gradients stay float32 until the loss scale is applied."""
        return torch.float32 if x.student_hidden.dtype == torch.float16 else x.student_weight.dtype

    def forward(self, x: Any, o: Any) -> tuple[Tensor, ...]:
        weights = self.row_weights(x, o)
        rows, kernel, parts = self._projected(x, weights), self.kernel(o), []
        for chunk in self._chunks(x, o, rows):
            values = kernel.forward(chunk.logits, chunk.target, weights.read[chunk.rows], o.config, stats=o.loss.stats)
            parts.append(values.as_row_values(chunk.target))
        values = self._joined(parts, weights, o)
        results = self._results(values, rows, weights, x, o)
        state = results[0].new_zeros((self.state_rows, len(weights.kinds))).index_copy_(1, rows, values.state)
        return *results, state

    def forward_backward(self, x: Any, o: Any, wants: list[bool]) -> tuple[Tensor, ...]:
        weights, student = self.row_weights(x, o), _student(x)
        rows, kernel, parts = self._projected(x, weights), self.kernel(o), []
        gradients, narrow = self._gradients(student, wants, rows, o), student.columns(o.config.vocab_size)
        for chunk in self._chunks(x, o, rows):
            some = weights.select(chunk.rows)
            arguments = (chunk.logits, chunk.target, some.read, some.weights, o.config)
            values = kernel.forward_backward(*arguments, stats=o.loss.stats, grad=chunk.logits)
            parts.append(values.as_row_values(chunk.target))
            gradients.add(chunk, narrow, o.config.vocab_size, some.weights != 0)
        results = self._results(self._joined(parts, weights, o), rows, weights, x, o)
        return *results, weights.weighted, *self._finished(gradients, x)

    def backward(self, x: Any, o: Any, state: Tensor, upstream: Tensor, wants: list[bool]) -> tuple[Tensor, ...]:
        weights, student = self.row_weights(x, o), _student(x)
        rows, weights, kernel = self._projected(x, weights), weights.times(upstream), self.kernel(o)
        gradients, narrow = self._gradients(student, wants, rows, o), student.columns(o.config.vocab_size)
        for chunk in self._chunks(x, o, rows):
            some = weights.select(chunk.rows)
            arguments = (chunk.logits, chunk.target, some.read, state[:, chunk.rows], some.weights, o.config)
            kernel.backward(*arguments, grad=chunk.logits)
            gradients.add(chunk, narrow, o.config.vocab_size, some.weights != 0)
        return self._finished(gradients, x)

    def scale_(self, gradient: Tensor, weighted: Tensor, upstream: Tensor, o: Any) -> None:
        torch.ops.sad.scale_(gradient, upstream)

    def _projected(self, x: Any, weights: RowWeights) -> Tensor:
        """(M,) int64, the rows to project. Finding them synchronizes with the device, unless the caller passes them."""
        return weights.read.nonzero().squeeze(-1) if x.rows is None else x.rows

    def _chunks(self, x: Any, o: Any, rows: Tensor) -> Iterator[Chunk]:
        """Chunks of about equal size in at most `o.chunk_bytes` (but at least one row), with their logits."""
        student, target = _student(x).columns(o.config.vocab_size), self.target(x, o)
        vocab, dtype = student.weight.shape[0], student.logits_dtype
        operand_bytes = student.hidden.element_size() if dtype != student.hidden.dtype else 0  # the rounded gradient
        row_bytes = vocab * (dtype.itemsize + operand_bytes) + target.row_bytes
        count = -(-len(rows) // max(1, o.chunk_bytes // row_bytes))
        size = -(-len(rows) // max(1, count))
        logits = self.kernel(o).new_logits((size, vocab), student.hidden.new_empty(0, dtype=dtype))
        for number, some in enumerate(rows.split(size) if size else ()):
            place = slice(number * size, number * size + len(some))
            hidden = student.hidden.index_select(0, some)
            student.project(hidden, logits[: len(some)])
            yield Chunk(some, place, hidden, logits[: len(some)], target.for_rows(some, place))

    def _gradients(self, student: Head, wants: list[bool], rows: Tensor, o: Any) -> Gradients:
        return Gradients.allocate(student, wants, written=o.config.vocab_size if len(rows) else 0)

    def _joined(self, parts: list[RowValues], weights: RowWeights, o: Any) -> RowValues:
        """The values of all projected rows, in their order."""
        if not parts:
            empty = weights.weights.new_empty(0)
            pair = empty.new_empty((2, 0)) if o.loss.stats else None
            return RowValues(empty, empty.new_empty((self.state_rows, 0)), pair, pair)
        return RowValues(*(None if field[0] is None else torch.cat(field, dim=-1) for field in zip(*parts)))

    def _results(self, values: RowValues, rows: Tensor, weights: RowWeights, x: Any, o: Any) -> tuple[Tensor, ...]:
        """Loss, sums and counts of all rows, from the values of the projected rows."""
        projected, shape = weights.select(rows), x.tokens.span_ids.shape
        if o.loss.reduction == "none":
            loss = torch.zeros_like(weights.weights).index_copy_(0, rows, values.value).view(shape)
        else:
            loss = reduce_values(values.value, projected, shape, o.loss)
        return loss, sums_by_kind(values, projected), weights.counts

    def _finished(self, gradients: Gradients, x: Any) -> tuple[Tensor, ...]:
        """The gradients in the shapes of the inputs and the dtype that `gradient_dtype` gives; empty ones for None."""
        hidden, weight, bias = gradients
        hidden = None if hidden is None else hidden.view(x.student_hidden.shape)
        dtype, like = self.gradient_dtype(x), x.student_hidden
        return tuple(like.new_empty(0, dtype=dtype) if g is None else g.to(dtype) for g in (hidden, weight, bias))


def _student(x: Any) -> Head:
    return Head(x.student_hidden.flatten(0, -2), x.student_weight, x.student_bias)
