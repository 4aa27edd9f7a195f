"""Small, awkward cases of every op against float64, in seconds: what `sad doctor` runs, and tools that slow kernels down.

Sizes are those that reach every path of a kernel: odd row starts, rows shorter than a tile, rows that several blocks share,
no row and every row supervised, a gradient in place and in a buffer of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels.ops.span_ids import span_ids_from_offsets
from sadkernels.ops.span_kl import fused_span_kl

SIZES = ((5, 7), (9, 1000), (3, 50257), (1, 151936))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALLOWED = 2.0  # errors up to here pass, in units of what a dtype's rounding explains
OPS = ("span_kl", "span_ids")


class SpanKLCase(NamedTuple):
    """N rows of V columns; `supervised` is "some", "all" or "none" of the rows."""

    rows: int
    vocab: int
    dtype: torch.dtype
    divergence: str = "forward_kl"
    in_place: bool = False
    supervised: str = "some"

    def error(self, backend: str, device: torch.device) -> float:
        """Largest relative error of loss and gradient, in units of what the dtype allows. Rows not supervised hold NaN."""
        generator = torch.Generator().manual_seed(self.rows + self.vocab)
        ids = torch.full((self.rows,), 1 if self.supervised == "all" else 0)
        if self.supervised == "some":
            ids[::2] = 2
        student, teacher = (3 * torch.randn(self.rows, self.vocab, generator=generator) for _ in range(2))
        for x in (student, teacher):
            x[ids == 0] = torch.nan
        student, teacher, ids = student.to(device, self.dtype), teacher.to(device, self.dtype), ids.to(device)
        results = []
        for name, convert in (("reference", torch.Tensor.double), (backend, torch.clone)):
            leaf = convert(student).requires_grad_()
            in_place = self.in_place and name == backend
            options = {"divergence": self.divergence, "backend": name, "inplace_backward": in_place}
            loss = fused_span_kl(leaf, convert(teacher), ids, **options)
            loss.backward()
            results.append((loss.item(), leaf.grad.double()))
        (loss, gradient), (own_loss, own_gradient) = results
        if own_gradient[ids == 0].any():
            return float("inf")
        if self.supervised == "none":
            return 0.0 if own_loss == 0 else float("inf")
        scale = gradient.abs().max()
        error = max(abs(own_loss / loss - 1), float((own_gradient - gradient).abs().max() / scale))
        return error / (torch.finfo(self.dtype).eps + 1e-5)


class SpanIdsCase(NamedTuple):
    """B rows of T tokens with `spans` spans each, none in the first of several rows."""

    rows: int
    tokens: int
    spans: int
    masks: bool = False

    def error(self, backend: str, device: torch.device) -> float:
        """0 where all labels are right, else infinity. Tokens overlap and come out of order."""
        generator = torch.Generator().manual_seed(self.rows + self.tokens)
        begins = torch.randint(0, 4 * self.tokens, (self.rows, self.tokens), generator=generator)
        widths = torch.randint(0, 9, begins.shape, generator=generator)
        offsets = torch.stack([begins, begins + widths], dim=-1)
        cuts = torch.stack([torch.randperm(4 * self.tokens, generator=generator) for _ in range(self.rows)])
        cuts = cuts[:, : 2 * self.spans].sort().values[1 if self.rows > 1 else 0 :].flatten()
        kinds = torch.randint(1, 3, (len(cuts) // 2,), generator=generator)
        row_splits = self.spans * torch.arange(self.rows + 1)
        if self.rows > 1:
            row_splits = torch.cat([torch.zeros(1, dtype=torch.int64), row_splits[:-1]])
        ragged = (cuts[::2], cuts[1::2], kinds, row_splits)
        expected = span_ids_from_offsets(offsets, *ragged, masks=self.masks, backend="reference")
        found = span_ids_from_offsets(offsets.to(device), *ragged, masks=self.masks, backend=backend)
        pairs = zip(expected, found) if self.masks else [(expected, found)]
        return 0.0 if all(_same(x, y) for x, y in pairs) else float("inf")


Case = SpanKLCase | SpanIdsCase


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b.cpu())


def all_cases(op: str, small_only: bool = False) -> Iterator[Case]:
    """Every case of `op`; `small_only` leaves the larger sizes out."""
    if op == "span_ids":
        for (rows, tokens, spans), masks in product(((1, 1, 1), (3, 100, 0), (5, 77, 9), (64, 512, 40)), (False, True)):
            if rows * tokens < 1000 or not small_only:
                yield SpanIdsCase(rows, tokens, spans, masks)
        return
    for (rows, vocab), dtype, in_place, supervised in product(
        SIZES[:2] if small_only else SIZES, DTYPES, (False, True), ("some", "all", "none")
    ):
        yield SpanKLCase(rows, vocab, dtype, "forward_kl", in_place, supervised)
    if not small_only:
        for divergence, dtype, in_place in product(("reverse_kl", "jsd"), DTYPES[:2], (False, True)):
            yield SpanKLCase(*SIZES[1], dtype, divergence, in_place)


def quick_cases(op: str) -> list[Case]:
    """A few cases of `op`, the most telling first."""
    if op == "span_ids":
        return [SpanIdsCase(5, 77, 9), SpanIdsCase(5, 77, 9, masks=True), SpanIdsCase(3, 100, 0)]
    return [
        SpanKLCase(9, 1001, torch.bfloat16),
        SpanKLCase(9, 1001, torch.float32, in_place=True),
        SpanKLCase(3, 50257, torch.bfloat16),
        SpanKLCase(5, 7, torch.float16, supervised="all"),
        SpanKLCase(5, 7, torch.bfloat16, supervised="none"),
        SpanKLCase(9, 1001, torch.bfloat16, "reverse_kl"),
        SpanKLCase(9, 1001, torch.float32, "jsd"),
    ]


@dataclass
class Outcome:
    """What became of the cases of an op on a backend.

    Args:
        cases: How many there were; those that time did not suffice for included.
        ran: How many were run.
        largest_error: Of those that were run, in units of what the dtype allows; up to `ALLOWED` passes.
        seconds: How long it took, compilation included.
        failures: A line for each case that was wrong or raised.
    """

    cases: int
    ran: int = 0
    largest_error: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Something ran, and nothing failed."""
        return self.ran > 0 and not self.failures


def run(
    cases: Iterable[Case],
    backend: str,
    device: torch.device,
    *,
    seconds: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Runs cases on a backend that can run here. After `seconds` no other case is begun; the first always is."""
    chosen, begin = list(cases), clock()
    outcome = Outcome(len(chosen))
    for case in chosen:
        if outcome.ran and clock() - begin > seconds:
            break
        outcome.ran += 1
        try:
            error = case.error(backend, device)
        except Exception as raised:  # a compiler's, a driver's: whatever it is, it is the finding
            first = (str(raised).splitlines() or [""])[0]
            outcome.failures.append(f"{case} raised {type(raised).__name__}: {first}")
            continue
        outcome.largest_error = max(outcome.largest_error, error)
        if not error <= ALLOWED:  # a NaN is one too
            outcome.failures.append(f"{case} is wrong: {error:.3g} times the rounding of its dtype")
    outcome.seconds = clock() - begin
    return outcome
