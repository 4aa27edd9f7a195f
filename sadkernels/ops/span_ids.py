"""Character spans to token labels: the `torch.library` op, the same for all backends, and its public function."""

from __future__ import annotations

import torch
from torch import Tensor

from sadkernels import backends, checks
from sadkernels.kinds import SpanKind


@torch.library.custom_op(
    "sad::span_ids_from_offsets",
    mutates_args=(),
    schema="(Tensor offsets, Tensor starts, Tensor ends, Tensor kinds, Tensor row_splits, str backend) -> Tensor",
)
def _span_ids_from_offsets(offsets, starts, ends, kinds, row_splits, backend):
    kernel = backends.implementation(backend, "span_ids")
    return kernel.span_ids_from_offsets(offsets, starts, ends, kinds, row_splits)


@_span_ids_from_offsets.register_fake
def _(offsets, starts, ends, kinds, row_splits, backend):
    return offsets.new_empty(offsets.shape[:-1], dtype=torch.uint8)


def _check_integers(name: str, x: Tensor, device: torch.device) -> None:
    if not isinstance(x, Tensor) or x.dtype == torch.bool or x.is_floating_point() or x.is_complex():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        checks.fail(name, "an integer tensor", got, "Use `torch.as_tensor(..., dtype=torch.int64)`.", TypeError)
    if x.device != device:
        checks.fail(name, f"a tensor on {device}, like offsets", f"one on {x.device}", "Move it with `.to(...)`.")


def _check_shapes(offsets: Tensor, spans: dict[str, Tensor], row_splits: Tensor) -> None:
    _check_integers("offsets", offsets, getattr(offsets, "device", torch.device("cpu")))
    if offsets.dim() not in (2, 3) or offsets.shape[-1] != 2:
        remedy = "Give the begin and end of each token's characters."
        checks.fail("offsets", "shape (T, 2) or (B, T, 2)", tuple(offsets.shape), remedy)
    for name, x in (*spans.items(), ("row_splits", row_splits)):
        _check_integers(name, x, offsets.device)
    count = spans["starts"].numel()
    for name, x in spans.items():
        if x.dim() != 1 or x.numel() != count:
            got = f"{tuple(x.shape)} beside starts of {tuple(spans['starts'].shape)}"
            checks.fail(name, "shape (M,), one entry per span", got, "Give every span a start, an end and a kind.")
    rows = offsets.shape[0] if offsets.dim() == 3 else 1
    if row_splits.shape != (rows + 1,):
        remedy = "Row i owns the spans row_splits[i] to row_splits[i + 1]."
        checks.fail("row_splits", f"shape ({rows + 1},), one more than rows of offsets", tuple(row_splits.shape), remedy)


def _check_values(starts: Tensor, ends: Tensor, kinds: Tensor, row_splits: Tensor) -> None:
    """Kernels read where `row_splits` points and rely on the order of the spans."""
    count = starts.numel()
    if row_splits[0] != 0 or row_splits[-1] != count or bool((row_splits[1:] < row_splits[:-1]).any()):
        got = f"{row_splits[:8].tolist()}{'...' if row_splits.numel() > 8 else ''}"
        checks.fail("row_splits", f"0 first, {count} (the number of spans) last, never falling", got, "Count the spans.")

    def refuse(bad: Tensor, expected: str, remedy: str) -> None:
        at = int(bad.nonzero()[0, 0])
        row = int((row_splits[1:] <= at).sum())
        number = at - int(row_splits[row])
        span = f"({int(starts[at])}, {int(ends[at])}, {int(kinds[at])})"
        before = f" after ({int(starts[at - 1])}, {int(ends[at - 1])}, {int(kinds[at - 1])})" if number else ""
        checks.fail("spans", expected, f"{span}{before} as span {number} of row {row}", remedy)

    reversed_ = (starts < 0) | (ends < starts)
    if bool(reversed_.any()):
        refuse(reversed_, "0 <= start <= end", "A span is the half-open character range [start, end).")
    unknown = (kinds < 0) | (kinds > max(SpanKind))
    if bool(unknown.any()):
        refuse(unknown, "kind 0 (none), 1 (reason) or 2 (act)", "Use `sad.Span.REASON` and `sad.Span.ACT`.")
    clash = torch.zeros(count, dtype=torch.bool, device=starts.device)
    clash[1:] = starts[1:] < ends[:-1]
    clash[row_splits[:-1][row_splits[:-1] < count].long()] = False  # the first span of a row has none before it
    if bool(clash.any()):
        refuse(clash, "spans in order that do not overlap", "Give every character to one span at most.")


def span_ids_from_offsets(
    offsets: Tensor, starts: Tensor, ends: Tensor, kinds: Tensor, row_splits: Tensor, backend: str = "auto"
) -> Tensor:
    """Labels every token with the kind of the span that covers most of its characters; ties: the earlier span.

    Args:
        offsets: (T, 2) or (B, T, 2) integers, half-open character range of each token. Empty ranges get 0.
        starts: (M,) integers, the half-open spans of all rows; within a row sorted and not overlapping.
        ends: (M,) integers.
        kinds: (M,) integers, 0 none, 1 reason, 2 act.
        row_splits: (B + 1,) integers (B = 1 for 2-D offsets); row i owns spans row_splits[i] to row_splits[i + 1].
        backend: "auto", "reference" or "cpu".

    Returns:
        uint8, (T,) or (B, T).

    Raises:
        ValueError: Shapes, devices or values do not fit. Finding out waits for the device.
        TypeError: Something is not an integer tensor.
        sadkernels.backends.BackendUnavailableError: The backend named cannot run here.
    """
    spans = {"starts": starts, "ends": ends, "kinds": kinds}
    _check_shapes(offsets, spans, row_splits)
    _check_values(starts, ends, kinds, row_splits)
    batch = offsets if offsets.dim() == 3 else offsets[None]
    backend = backends.resolve(backend, "span_ids", offsets.device)
    batch, starts, ends, row_splits = (x.to(torch.int64) for x in (batch, starts, ends, row_splits))
    ids = torch.ops.sad.span_ids_from_offsets(batch, starts, ends, kinds.to(torch.uint8), row_splits, backend)
    return ids if offsets.dim() == 3 else ids[0]
