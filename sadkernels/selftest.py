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

from sadkernels.ops.linear_span_kl import fused_linear_span_kl
from sadkernels.ops.linear_topk_span_kl import fused_linear_topk_span_kl
from sadkernels.ops.span_ids import span_ids_from_offsets
from sadkernels.ops.span_kl import fused_span_kl
from sadkernels.ops.topk_span_kl import fused_span_ce, fused_topk_span_kl

SIZES = ((5, 7), (9, 1000), (3, 50257), (1, 151936))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALLOWED = 2.0  # errors up to here pass, in units of what a dtype's rounding explains
OPS = ("span_kl", "topk_span_kl", "span_ids")
_WIDTH = 16  # of hidden states


class SpanKLCase(NamedTuple):
    """N rows of V columns; `supervised` is "some", "all" or "none" of the rows. `hidden`: from hidden states."""

    rows: int
    vocab: int
    dtype: torch.dtype
    divergence: str = "forward_kl"
    in_place: bool = False
    supervised: str = "some"
    hidden: bool = False

    def error(self, backend: str, device: torch.device) -> float:
        """Largest relative error of loss and gradient, in units of what the dtype allows. Rows not supervised hold NaN."""
        problem = _Problem(self, device)
        teacher = problem.side()
        options = {"divergence": self.divergence}

        def loss(name: str, student: list[Tensor], in_place: dict[str, bool]) -> Tensor:
            own = [_like(x, student[0]) for x in teacher]
            fused = fused_linear_span_kl if self.hidden else fused_span_kl
            return fused(*student, *own, problem.ids, backend=name, **options, **in_place)

        return problem.error(loss, backend)


class TopkCase(NamedTuple):
    """As `SpanKLCase`, with `listed` columns of the teacher and the share `alpha` of the KL; none listed: labels alone."""

    rows: int
    vocab: int
    dtype: torch.dtype
    listed: int = 5
    alpha: float = 1.0
    tail: str = "bucket"
    in_place: bool = False
    supervised: str = "some"
    hidden: bool = False

    def error(self, backend: str, device: torch.device) -> float:
        """As of a `SpanKLCase`."""
        problem = _Problem(self, device)
        logits = 3 * torch.randn(self.rows, self.vocab, generator=problem.generator)
        logprobs, columns = logits.log_softmax(-1).topk(max(self.listed, 1))
        labels = torch.randint(0, self.vocab, (self.rows,), generator=problem.generator)
        labels[-1] = columns[-1, -1]  # one that is listed
        logprobs[problem.ids.cpu() == 0] = torch.nan
        logprobs, columns, labels = (x.to(device) for x in (logprobs, columns, labels))
        options = {"tail": self.tail, "alpha": self.alpha, "target_ids": labels}

        def loss(name: str, student: list[Tensor], in_place: dict[str, bool]) -> Tensor:
            if self.listed == 0:
                return fused_span_ce(*student, labels, problem.ids, backend=name, **in_place)
            fused = fused_linear_topk_span_kl if self.hidden else fused_topk_span_kl
            return fused(*student, logprobs, columns, problem.ids, backend=name, **options, **in_place)

        return problem.error(loss, backend)


def _like(x: Tensor, other: Tensor) -> Tensor:
    return x.to(other.dtype)


class _Problem:
    """Students of a case, and how far a backend's loss and gradients are from the reference's in float64."""

    def __init__(self, case: SpanKLCase | TopkCase, device: torch.device) -> None:
        self.case, self.device = case, device
        self.generator = torch.Generator().manual_seed(case.rows + case.vocab)
        ids = torch.full((case.rows,), 1 if case.supervised == "all" else 0)
        if case.supervised == "some":
            ids[::2] = 2
        self.ids = ids.to(device)
        self.student = self.side()

    def side(self) -> list[Tensor]:
        """Logits; or hidden states and a head whose products no dtype rounds: quarters of whole numbers."""
        case = self.case
        if case.hidden:
            rows = torch.randint(-4, 5, (case.rows, _WIDTH), generator=self.generator) / 4
            weight = torch.randint(-1, 2, (case.vocab, _WIDTH), generator=self.generator).float()
        else:
            rows, weight = 3 * torch.randn(case.rows, case.vocab, generator=self.generator), None
        rows[self.ids.cpu() == 0] = torch.nan
        return [x.to(self.device, case.dtype) for x in (rows, weight) if x is not None]

    def error(self, loss: Callable[[str, list[Tensor], dict[str, bool]], Tensor], backend: str) -> float:
        """Of `loss(backend, student, options)`; infinite where a row without a span has a gradient."""
        results = []
        for name, convert in (("reference", torch.Tensor.double), (backend, torch.clone)):
            leaves = [convert(x).requires_grad_() for x in self.student]
            in_place = {} if self.case.hidden else {"inplace_backward": self.case.in_place and name == backend}
            value = loss(name, leaves, in_place)
            value.backward()
            results.append((value.item(), [leaf.grad.double() for leaf in leaves]))
        (value, gradients), (own_value, own_gradients) = results
        if own_gradients[0][self.ids == 0].any():
            return float("inf")
        if self.case.supervised == "none":
            return 0.0 if own_value == 0 else float("inf")
        errors = [abs(own_value / value - 1)]
        errors += [float((own - exact).abs().max() / exact.abs().max()) for own, exact in zip(own_gradients, gradients)]
        largest = max(errors) if all(error == error for error in errors) else float("nan")
        return largest / (torch.finfo(self.case.dtype).eps + 1e-5)


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


Case = SpanKLCase | TopkCase | SpanIdsCase


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b.cpu())


def all_cases(op: str, small_only: bool = False) -> Iterator[Case]:
    """Every case of `op`; `small_only` leaves the larger sizes out."""
    if op == "span_ids":
        for (rows, tokens, spans), masks in product(((1, 1, 1), (3, 100, 0), (5, 77, 9), (64, 512, 40)), (False, True)):
            if rows * tokens < 1000 or not small_only:
                yield SpanIdsCase(rows, tokens, spans, masks)
        return
    sizes = SIZES[:2] if small_only else SIZES
    kind = SpanKLCase if op == "span_kl" else TopkCase
    for (rows, vocab), dtype, in_place, supervised in product(sizes, DTYPES, (False, True), ("some", "all", "none")):
        yield kind(rows, vocab, dtype, in_place=in_place, supervised=supervised)
    for (rows, vocab), dtype in product(sizes[:3], DTYPES):
        yield kind(rows, vocab, dtype, hidden=True)
        if op == "topk_span_kl":
            yield TopkCase(rows, vocab, dtype, alpha=0.6)
            yield TopkCase(rows, vocab, dtype, listed=0)
    if small_only:
        return
    for dtype, in_place in product(DTYPES[:2], (False, True)):
        if op == "span_kl":
            for divergence in ("reverse_kl", "jsd"):
                yield SpanKLCase(*SIZES[1], dtype, divergence, in_place)
        else:
            yield TopkCase(*SIZES[1], dtype, 64, tail="ignore", in_place=in_place)
            yield TopkCase(*SIZES[1], dtype, SIZES[1][1], in_place=in_place)  # the whole vocabulary is listed


def quick_cases(op: str) -> list[Case]:
    """A few cases of `op`, the most telling first."""
    if op == "span_ids":
        return [SpanIdsCase(5, 77, 9), SpanIdsCase(5, 77, 9, masks=True), SpanIdsCase(3, 100, 0)]
    if op == "topk_span_kl":
        return [
            TopkCase(9, 1001, torch.bfloat16),
            TopkCase(9, 1001, torch.float32, 40, alpha=0.6, in_place=True),
            TopkCase(3, 50257, torch.bfloat16, 64),
            TopkCase(9, 1001, torch.float32, listed=0),
            TopkCase(9, 1001, torch.float32, hidden=True),
            TopkCase(5, 7, torch.float16, tail="ignore", supervised="all"),
            TopkCase(5, 7, torch.bfloat16, supervised="none"),
        ]
    return [
        SpanKLCase(9, 1001, torch.bfloat16),
        SpanKLCase(9, 1001, torch.float32, in_place=True),
        SpanKLCase(3, 50257, torch.bfloat16),
        SpanKLCase(5, 7, torch.float16, supervised="all"),
        SpanKLCase(5, 7, torch.bfloat16, supervised="none"),
        SpanKLCase(9, 1001, torch.bfloat16, "reverse_kl"),
        SpanKLCase(9, 1001, torch.float32, "jsd"),
        SpanKLCase(9, 1001, torch.float32, hidden=True),
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
