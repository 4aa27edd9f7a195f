"""Character spans, and the labels of the tokens that they cover.

This module imports PyTorch only to make labels, so that reading and segmenting files starts fast.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import index, or_
from typing import TYPE_CHECKING, Any, NamedTuple

from sad.errors import InputError
from sadkernels.spans import SpanKind

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Span", "SpanKind", "WeightedRange", "span_ids_from_offsets"]


class Span(NamedTuple):
    """The characters `start` to `end` (half-open) of a text, and their kind.

    The kind selects the loss of the tokens. `Span.NONE`, `Span.REASON`, `Span.ACT` and `Span.OBSERVE` equal the ids 0, 1, 2
    and 3 in label tensors. The model wrote reasoning and actions, the environment wrote observations.
    """

    start: int
    end: int
    kind: SpanKind

    NONE = SpanKind.NONE
    REASON = SpanKind.REASON
    ACT = SpanKind.ACT
    OBSERVE = SpanKind.OBSERVE


class WeightedRange(NamedTuple):
    """The characters `start` to `end` (half-open) of a text whose tokens have a weight other than 1."""

    start: int
    end: int
    weight: float


def supervised_kinds(observe: bool = False) -> tuple[SpanKind, ...]:
    """Returns the kinds whose tokens have a loss: reasoning and actions, and observations with `observe`.

    A training sets `observe` if lambda_observe > 0.
    """
    model = (SpanKind.REASON, SpanKind.ACT)
    return (*model, SpanKind.OBSERVE) if observe else model


def is_supervised(span_ids: Any, observe: bool = False) -> Any:
    """Returns which tokens have a loss.

    Args:
        span_ids: Labels, an array or a tensor of any shape.
        observe: Whether observations have a loss.

    Returns:
        Bools of the same type and shape.
    """
    return reduce(or_, (span_ids == kind for kind in supervised_kinds(observe)))


def _offsets(offsets: Iterable) -> Tensor:
    """Returns a tokenizer's lists, or an array, as a tensor (T, 2) or (B, T, 2)."""
    import torch

    try:
        if not hasattr(offsets, "__array__"):
            offsets = list(offsets)
            if not any(len(row) for row in offsets):  # no tokens; PyTorch makes a float tensor of empty lists
                return torch.empty((len(offsets), 0, 2) if offsets else (0, 2), dtype=torch.int64)
        return torch.as_tensor(offsets)
    except (TypeError, ValueError, RuntimeError) as error:  # None, entries that are None, rows of different lengths
        expected = "integer pairs (begin, end): (T, 2), or rows of one length (B, T, 2)"
        remedy = "Call a fast tokenizer with return_offsets_mapping=True, and padding=True for a batch."
        raise InputError("offsets", expected, f"{type(offsets).__name__} ({error})", remedy) from None


def _ragged(rows: Iterable[Iterable[tuple[int, int, int]]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns lists of spans as (starts, ends, kinds, row_splits) on the CPU, sorted within each row."""
    import torch

    splits, flat = [0], []
    for number, row in enumerate(rows):
        try:
            row = list(row)
            flat += sorted((_int64(start), _int64(end), _int64(kind)) for start, end, kind in row)
        except (TypeError, ValueError):
            remedy = "Write Span(0, 12, Span.REASON), or one list of spans per row for offsets of shape (B, T, 2)."
            raise InputError("spans", "integer triples (start, end, kind)", f"{row!r} in row {number}", remedy) from None
        splits.append(len(flat))
    table = torch.tensor(flat, dtype=torch.int64).reshape(-1, 3)
    return *table.unbind(1), torch.tensor(splits, dtype=torch.int64)


def _int64(value: object) -> int:
    number = index(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(value)
    return number


def span_ids_from_offsets(
    offsets: Tensor | Iterable, spans: Iterable, *, masks: bool = False, check: bool = True, backend: str = "auto"
) -> Tensor | tuple[Tensor, Tensor]:
    """Labels tokens by their character offsets, as a fast tokenizer returns them (section D.2 of the paper).

    A token belongs to the span that covers most of its characters. Characters outside all spans do not compete. If two
    spans cover equally many, the earlier one wins. So every token of non-zero width that touches a span has exactly one
    label. Tokens of zero width (a BOS, padding) have label 0.

    Args:
        offsets: (T, 2) or (B, T, 2) integers, half-open character ranges: a tensor, an array, or the tokenizer's lists.
        spans: `Span(start, end, kind)` items that do not overlap, in any order: a list for (T, 2), one list per row for
            (B, T, 2). Or ragged tensors (starts, ends, kinds, row_splits), sorted within each row, on the CPU or on the
            device of `offsets`: row i has the spans row_splits[i] to row_splits[i + 1]. Lists and CPU tensors are
            checked on the CPU and copied to a GPU without a device synchronization.
        masks: Whether to return the two masks of the paper instead of ids.
        check: Whether to check the values of the spans. For ragged tensors on a GPU the check synchronizes with the
            device. False trusts the values: invalid ones give wrong labels or out-of-bounds reads.
        backend: "auto", "reference", "cpu", "triton" or "cuda". A backend that is named never falls back to another.

    Returns:
        uint8 (T,) or (B, T): 0 none, 1 reason, 2 act, 3 observe. With `masks`, m_r and m_a as bool tensors of this shape.

    Raises:
        ValueError: Spans overlap or are not ranges, lists are ragged or contain None, or shapes do not match. The message
            says which.
        TypeError: `offsets` are not integers.
        sadkernels.backends.BackendUnavailableError: The named backend cannot run here.

    Example:
        >>> span_ids_from_offsets([(0, 4), (4, 9), (9, 12)], [Span(0, 6, Span.REASON), Span(6, 12, Span.ACT)])
        tensor([1, 2, 2], dtype=torch.uint8)
    """
    from torch import Tensor

    from sadkernels.ops import span_ids as op

    if not isinstance(offsets, Tensor):
        offsets = _offsets(offsets)
    if not isinstance(spans, Iterable):
        remedy = "Pass [] for a text without spans."
        raise InputError("spans", "a list of Span(start, end, kind)", repr(spans), remedy)
    if not isinstance(spans, Tensor):
        spans = list(spans)
    if isinstance(spans, list) and len(spans) == 4 and all(isinstance(x, Tensor) for x in spans):
        ragged = tuple(spans)
    else:
        by_row = spans if offsets.dim() == 3 else [spans]
        if offsets.dim() == 3 and len(by_row) != len(offsets):
            remedy = "Pass one list per row of offsets; use an empty list for a row without spans."
            raise InputError("spans", f"{len(offsets)} lists of spans, one per row of offsets", str(len(by_row)), remedy)
        ragged = _ragged(by_row)
    return op.span_ids_from_offsets(offsets, *ragged, masks=masks, check=check, backend=backend)
