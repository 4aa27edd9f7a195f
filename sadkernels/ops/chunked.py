"""The losses from hidden states: the student's head is applied to one chunk of supervised rows at a time.

Only supervised rows are gathered and projected. A `Target` supplies the teacher side of each chunk. The kernel overwrites
the chunk's logits with their gradient, which is multiplied onto hidden states and head at once; then the next chunk uses the
same memory. So no head is projected twice, and no buffer has N x V elements.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sadkernels import tuning
from sadkernels.divergence import RowValues
from sadkernels.ops.autograd import LossOp
from sadkernels.ops.head import Head, HeadGradients
from sadkernels.ops.products import is_cpu
from sadkernels.ops.row_weights import RowWeights, loss_and_sums

_CPU_CHUNK_BYTES = 128 << 20
_GPU_CHUNK_ROWS, _GPU_MEMORY_SHARE = 2048, 16  # the products of fewer rows are bound by memory on an H100
GPU_ROW_MULTIPLE, _GPU_COLUMN_MULTIPLE = 128, 64  # tiles of a product; leading dimensions at 16-byte borders in 16 bits


def default_chunk_bytes(row_bytes: int, gpu_memory: int | None, rows: int = _GPU_CHUNK_ROWS) -> int:
    """The memory for the logits of one chunk: on a GPU that of `rows` rows, but at most 1/16 of its memory.

    Args:
        row_bytes: Bytes per row of a chunk.
        gpu_memory: The memory of the GPU in bytes; None for a CPU, where 128 MiB are enough.
        rows: Rows of a chunk on a GPU.
    """
    if gpu_memory is None:
        return _CPU_CHUNK_BYTES
    return min(rows * row_bytes, gpu_memory // _GPU_MEMORY_SHARE)


def chunk_rows(rows: int, row_bytes: int, chunk_bytes: int, multiple: int) -> int:
    """The rows of each chunk but the last: about equal chunks of at most `chunk_bytes`, but of at least one row.

    Args:
        rows: The rows of all chunks.
        row_bytes: Bytes per row.
        chunk_bytes: Bytes per chunk.
        multiple: The rows of a chunk are a multiple of this if `chunk_bytes` holds as many.
    """
    largest = max(1, chunk_bytes // row_bytes)
    multiple = multiple if largest >= multiple else 1
    chunks = -(-rows // (largest // multiple * multiple))
    return -(-rows // (max(1, chunks) * multiple)) * multiple


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
        read = weights.read[rows]
        for chunk in self._chunks(x, o, rows):
            values = kernel.forward(chunk.logits, chunk.target, read[chunk.place], o.config, stats=o.loss.stats)
            parts.append(values.as_row_values(chunk.target))
        values = self._joined(parts, weights, o)
        results = self._results(values, rows, weights, x, o)
        state = results[0].new_zeros((self.state_rows, len(weights.kinds))).index_copy_(1, rows, values.state)
        return *results, state

    def forward_backward(self, x: Any, o: Any, wants: list[bool]) -> tuple[Tensor, ...]:
        weights = self.row_weights(x, o)
        rows, kernel, parts = self._projected(x, weights), self.kernel(o), []
        projected, gradients = weights.select(rows), HeadGradients(_student(x), wants, o.config.vocab_size, not len(rows))
        without_weight = projected.weights == 0.0
        for chunk in self._chunks(x, o, rows):
            some = projected.part(chunk.place)
            arguments = (chunk.logits, chunk.target, some.read, some.weights, o.config)
            values = kernel.forward_backward(*arguments, stats=o.loss.stats, grad=chunk.logits)
            parts.append(values.as_row_values(chunk.target))
            gradients.add(chunk.rows, chunk.hidden, chunk.logits, without_weight[chunk.place], first=chunk.place.start == 0)
        results = self._results(self._joined(parts, weights, o), rows, weights, x, o)
        return *results, weights.weighted, *self._finished(gradients, x)

    def backward(self, x: Any, o: Any, state: Tensor, upstream: Tensor, wants: list[bool]) -> tuple[Tensor, ...]:
        weights = self.row_weights(x, o)
        rows, kernel = self._projected(x, weights), self.kernel(o)
        projected = weights.times(upstream).select(rows)
        gradients = HeadGradients(_student(x), wants, o.config.vocab_size, not len(rows))
        without_weight = projected.weights == 0.0
        for chunk in self._chunks(x, o, rows):
            some = projected.part(chunk.place)
            arguments = (chunk.logits, chunk.target, some.read, state[:, chunk.rows], some.weights, o.config)
            kernel.backward(*arguments, grad=chunk.logits)
            gradients.add(chunk.rows, chunk.hidden, chunk.logits, without_weight[chunk.place], first=chunk.place.start == 0)
        return self._finished(gradients, x)

    def scale_(self, gradient: Tensor, weighted: Tensor, upstream: Tensor, o: Any) -> None:
        """The kernels of a GPU return at once if the factor is 1, so that the gradient of a head is not read for nothing."""
        if is_cpu(gradient) or o.loss.backend == "reference":
            torch.ops.sad.scale_(gradient, upstream)
        else:
            rows = gradient.view(-1, gradient.shape[-1])
            every_row = rows.new_ones(len(rows), dtype=torch.uint8)
            torch.ops.sad.scale_rows_(rows, every_row, upstream, rows.shape[1], o.loss.backend)

    def _projected(self, x: Any, weights: RowWeights) -> Tensor:
        """(M,) int64, the rows to project. Finding them synchronizes with the device, unless the caller passes them."""
        return weights.read.nonzero().squeeze(-1) if x.rows is None else x.rows

    def _chunks(self, x: Any, o: Any, rows: Tensor) -> Iterator[Chunk]:
        """Chunks of about equal size in at most `o.chunk_bytes` (but at least one row), with their logits."""
        student, target = _student(x).columns(o.config.vocab_size), self.target(x, o)
        vocab, dtype, device = student.weight.shape[0], student.logits_dtype, student.hidden.device
        operand_bytes = student.hidden.element_size() if dtype != student.hidden.dtype else 0  # the rounded gradient
        row_bytes = vocab * (dtype.itemsize + operand_bytes) + target.row_bytes
        chosen = tuning.choice("linear.chunk", device, vocab, student.hidden.dtype) or {"rows": _GPU_CHUNK_ROWS}
        default = default_chunk_bytes(row_bytes, _gpu_memory(device), chosen["rows"])
        chunk_bytes = default if o.chunk_bytes is None else o.chunk_bytes
        size = chunk_rows(len(rows), row_bytes, chunk_bytes, 1 if is_cpu(student.hidden) else GPU_ROW_MULTIPLE)
        logits = new_chunk_logits(self.kernel(o), min(size, len(rows)), vocab, student.hidden.new_empty(0, dtype=dtype))
        for number, some in enumerate(rows.split(size) if size else ()):
            place = slice(number * size, number * size + len(some))
            hidden = student.hidden.index_select(0, some)
            student.project(hidden, logits[: len(some)])
            yield Chunk(some, place, hidden, logits[: len(some)], target.for_rows(some, place))

    def _joined(self, parts: list[RowValues], weights: RowWeights, o: Any) -> RowValues:
        """The values of all projected rows, in their order."""
        if not parts:
            empty = weights.weights.new_empty(0)
            pair = empty.new_empty((2, 0)) if o.loss.stats else None
            return RowValues(empty, empty.new_empty((self.state_rows, 0)), pair, pair)
        return RowValues(*(None if field[0] is None else torch.cat(field, dim=-1) for field in zip(*parts)))

    def _results(self, values: RowValues, rows: Tensor, weights: RowWeights, x: Any, o: Any) -> tuple[Tensor, ...]:
        """Loss, sums and counts of all rows, from the values of the projected rows."""
        loss, sums = loss_and_sums(values, weights.select(rows), o.loss)
        if o.loss.reduction == "none":
            loss = torch.zeros_like(weights.weights).index_copy_(0, rows, values.value).view(x.tokens.span_ids.shape)
        return loss, sums, weights.counts

    def _finished(self, gradients: HeadGradients, x: Any) -> tuple[Tensor, ...]:
        """The gradients in the shapes of the inputs and the dtype that `gradient_dtype` gives; empty ones for None."""
        hidden, weight, bias = gradients.hidden, gradients.weight, gradients.bias
        hidden = None if hidden is None else hidden.view(x.student_hidden.shape)
        dtype, like = self.gradient_dtype(x), x.student_hidden
        return tuple(like.new_empty(0, dtype=dtype) if g is None else g.to(dtype) for g in (hidden, weight, bias))


def new_chunk_logits(kernel: ModuleType, rows: int, columns: int, like: Tensor) -> Tensor:
    """(rows, columns) uninitialized logits. On a GPU each row begins at a 128-byte border, as fast products need."""
    if is_cpu(like):
        return kernel.new_logits((rows, columns), like)
    padded = -(-columns // _GPU_COLUMN_MULTIPLE) * _GPU_COLUMN_MULTIPLE
    return kernel.new_logits((rows, padded), like)[:, :columns]


@functools.cache
def _gpu_memory(device: torch.device) -> int | None:
    """The memory of a GPU in bytes; None for a CPU."""
    if device.type == "cpu":
        return None
    return torch.get_device_module(device).get_device_properties(device).total_memory


def _student(x: Any) -> Head:
    return Head(x.student_hidden.flatten(0, -2), x.student_weight, x.student_bias)
