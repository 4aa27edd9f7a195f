"""Span ids of tokens: from character spans, with `torch.library` ops for all backends, and from two masks."""

from __future__ import annotations

import torch
from torch import Tensor

from sadkernels import backends
from sadkernels.ops.validate import check_choice, fail
from sadkernels.spans import SpanKind

_ARGUMENTS = "(Tensor offsets, Tensor starts, Tensor ends, Tensor kinds, Tensor row_splits, str backend)"


@torch.library.custom_op("sad::span_ids_from_offsets", mutates_args=(), schema=f"{_ARGUMENTS} -> Tensor")
def _span_ids_from_offsets(offsets, starts, ends, kinds, row_splits, backend):
    kernel = backends.implementation(backend, "span_ids")
    return kernel.span_ids_from_offsets(offsets, starts, ends, kinds, row_splits, masks=False)


@_span_ids_from_offsets.register_fake
def _(offsets, starts, ends, kinds, row_splits, backend):
    return offsets.new_empty(offsets.shape[:-1], dtype=torch.uint8)


@torch.library.custom_op("sad::span_masks_from_offsets", mutates_args=(), schema=f"{_ARGUMENTS} -> (Tensor, Tensor)")
def _span_masks_from_offsets(offsets, starts, ends, kinds, row_splits, backend):
    kernel = backends.implementation(backend, "span_ids")
    return kernel.span_ids_from_offsets(offsets, starts, ends, kinds, row_splits, masks=True)


@_span_masks_from_offsets.register_fake
def _(offsets, starts, ends, kinds, row_splits, backend):
    return tuple(offsets.new_empty(offsets.shape[:-1], dtype=torch.bool) for _ in range(2))


def span_ids_from_offsets(
    offsets: Tensor,
    starts: Tensor,
    ends: Tensor,
    kinds: Tensor,
    row_splits: Tensor,
    *,
    masks: bool = False,
    check: bool = True,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Labels each token with the kind of the span that covers most of its characters (ties: the earlier span).

    The spans may be on the CPU while the offsets are on a GPU. They are then checked on the CPU and copied to the GPU at
    once, without a device synchronization.

    Args:
        offsets: (T, 2) or (B, T, 2) integers, the half-open character range of each token. Empty ranges get id 0.
        starts: (M,) integers, the starts of the half-open spans of all rows. Within a row the spans are sorted and do not
            overlap.
        ends: (M,) integers, their ends.
        kinds: (M,) integers: 0 none, 1 reason, 2 act.
        row_splits: (B + 1,) integers (B = 1 for 2-D offsets); row i owns spans row_splits[i] to row_splits[i + 1].
        masks: Return the paper's two masks instead of the ids, from the same pass.
        check: Check the values of the spans. On a GPU this synchronizes with the device. With False, unsorted spans give
            wrong labels, and `row_splits` beyond the spans reads foreign memory.
        backend: "auto", or one of `sadkernels.backends.PACKAGES`, which is never replaced.

    Returns:
        uint8, (T,) or (B, T). With `masks`, m_r and m_a as bool tensors of that shape.

    Raises:
        ValueError: A shape, device or value is invalid.
        TypeError: An argument is not an integer tensor.
        sadkernels.backends.BackendUnavailableError: The backend was requested by name and cannot run here.
    """
    check_choice("backend", backend, ("auto", *backends.PACKAGES))
    _check_shapes(offsets, {"starts": starts, "ends": ends, "kinds": kinds}, row_splits)
    ragged = (starts, ends, kinds, row_splits)
    if check:
        _check_values(*ragged)
    batch = (offsets if offsets.dim() == 3 else offsets[None]).to(torch.int64)
    if row_splits.device != offsets.device:
        ragged = _to_device(ragged, offsets.device)
    dtypes = (torch.int64, torch.int64, torch.uint8, torch.int64)
    ragged = tuple(x.to(dtype) for x, dtype in zip(ragged, dtypes))
    backend = backends.resolve(backend, "span_ids", offsets.device)
    op = torch.ops.sad.span_masks_from_offsets if masks else torch.ops.sad.span_ids_from_offsets
    result = op(batch, *ragged, backend)
    if offsets.dim() == 3:
        return result
    return tuple(x[0] for x in result) if masks else result[0]


def span_ids_from_masks(reason_mask: Tensor, act_mask: Tensor) -> Tensor:
    """Combines the paper's two binary masks into one id per token.

    Args:
        reason_mask: m_r, bool or 0/1 integers, any shape.
        act_mask: m_a, same shape and device.

    Returns:
        uint8 of the masks' shape: 0 none, 1 reason, 2 act.

    Raises:
        ValueError: Shapes or devices differ, a mask has values other than 0 and 1, or a token is in both masks (the method
            requires m_r(t) + m_a(t) <= 1, section 3.3). The check synchronizes with the device.
        TypeError: A mask is not a tensor of bools or integers.
    """
    masks = []
    for name, mask in (("reason_mask", reason_mask), ("act_mask", act_mask)):
        if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            fail(name, "a bool or integer tensor", got, "Compare it: `mask > 0`.", TypeError)
        if mask.shape != reason_mask.shape or mask.device != reason_mask.device:
            got = f"{tuple(mask.shape)} on {mask.device}"
            expected = f"shape {tuple(reason_mask.shape)} on {reason_mask.device}, like reason_mask"
            fail(name, expected, got, "Build both masks from the same tokens.")
        if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
            fail(name, "only 0 and 1", "other values", "Compare it: `mask > 0`.")
        masks.append(mask != 0)
    both = int((masks[0] & masks[1]).sum())
    if both:
        fail("act_mask", "no token that is also in reason_mask", f"{both} such tokens", "Give each token one span.")
    return masks[0].to(torch.uint8) * SpanKind.REASON + masks[1].to(torch.uint8) * SpanKind.ACT


def _check_integers(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dtype == torch.bool or x.is_floating_point() or x.is_complex():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        fail(name, "an integer tensor", got, "Use `torch.as_tensor(..., dtype=torch.int64)`.", TypeError)


def _check_shapes(offsets: Tensor, spans: dict[str, Tensor], row_splits: Tensor) -> None:
    _check_integers("offsets", offsets)
    if offsets.dim() not in (2, 3) or offsets.shape[-1] != 2:
        remedy = "Pass the begin and the end of each token's characters."
        fail("offsets", "shape (T, 2) or (B, T, 2)", tuple(offsets.shape), remedy)
    for name, x in (*spans.items(), ("row_splits", row_splits)):
        _check_integers(name, x)
        if x.device != row_splits.device or x.device not in (offsets.device, torch.device("cpu")):
            expected = f"all of starts, ends, kinds and row_splits on {offsets.device}, like offsets, or all on the CPU"
            fail(name, expected, f"one on {x.device} beside row_splits on {row_splits.device}", "Move it there.")
    count = spans["starts"].numel()
    for name, x in spans.items():
        if x.dim() != 1 or x.numel() != count:
            got = f"{tuple(x.shape)} beside starts of {tuple(spans['starts'].shape)}"
            fail(name, "shape (M,), one entry per span", got, "Pass a start, an end and a kind per span.")
    rows = offsets.shape[0] if offsets.dim() == 3 else 1
    if row_splits.shape != (rows + 1,):
        remedy = "Row i owns the spans row_splits[i] to row_splits[i + 1]."
        fail("row_splits", f"shape ({rows + 1},), one more than rows of offsets", tuple(row_splits.shape), remedy)


def _check_values(starts: Tensor, ends: Tensor, kinds: Tensor, row_splits: Tensor) -> None:
    """Kernels read memory at `row_splits` and rely on the order of the spans, so both are checked."""
    count = starts.numel()
    if row_splits[0] != 0 or row_splits[-1] != count or bool((row_splits[1:] < row_splits[:-1]).any()):
        got = f"{row_splits[:8].tolist()}{'...' if row_splits.numel() > 8 else ''}"
        fail("row_splits", f"0 first, {count} (the number of spans) last, never decreasing", got, "Count the spans.")

    def refuse(bad: Tensor, expected: str, remedy: str) -> None:
        at = int(bad.nonzero()[0, 0])
        row = int((row_splits[1:] <= at).sum())
        number = at - int(row_splits[row])
        span = f"({int(starts[at])}, {int(ends[at])}, {int(kinds[at])})"
        before = f" after ({int(starts[at - 1])}, {int(ends[at - 1])}, {int(kinds[at - 1])})" if number else ""
        fail("spans", expected, f"{span}{before} as span {number} of row {row}", remedy)

    reversed_ = (starts < 0) | (ends < starts)
    if bool(reversed_.any()):
        refuse(reversed_, "0 <= start <= end", "A span is the half-open character range [start, end).")
    unknown = (kinds < 0) | (kinds > max(SpanKind))
    if bool(unknown.any()):
        names = [f"{kind.value} ({kind.name.lower()})" for kind in SpanKind]
        refuse(unknown, f"kind {', '.join(names[:-1])} or {names[-1]}", "Use `sad.Span.REASON` and `sad.Span.ACT`.")
    clash = torch.zeros(count, dtype=torch.bool, device=starts.device)
    clash[1:] = starts[1:] < ends[:-1]
    clash[row_splits[:-1][row_splits[:-1] < count].long()] = False  # the first span of a row follows no other span of it
    if bool(clash.any()):
        refuse(clash, "spans in order that do not overlap", "Assign each character to at most one span.")


def _to_device(ragged: tuple[Tensor, Tensor, Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(starts, ends, kinds, row_splits) from the CPU on `device`, in one asynchronous copy."""
    count, splits = ragged[0].numel(), ragged[3].numel()
    # Pinned memory makes the copy asynchronous; PyTorch keeps it until the stream has copied it.
    packed = torch.empty(2 * count + splits + -(-count // 8), dtype=torch.int64, pin_memory=device.type == "cuda")

    def parts(memory: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        starts, ends, splits_, rest = memory.split([count, count, splits, -(-count // 8)])
        return starts, ends, rest.view(torch.uint8)[:count], splits_

    for part, source in zip(parts(packed), ragged):
        part.copy_(source)
    return parts(packed.to(device, non_blocking=True))
