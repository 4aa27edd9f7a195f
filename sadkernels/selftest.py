"""Small, difficult cases of every op, compared with float64. `sad doctor` and `benchmarks/check_small.py` run them.

The sizes reach every path of a kernel: rows that start at odd addresses, rows shorter than a tile, rows that several thread
blocks share, no supervised row and only supervised rows, a gradient in place and in its own buffer.
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

SIZES = ((5, 7), (9, 1000), (3, 50257), (1, 151936))  # (rows, vocabulary)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ALLOWED = 2.0  # largest error that passes, in units of the dtype's rounding
OPS = ("span_kl", "topk_span_kl", "span_ids")
_HIDDEN_SIZE = 16


class SpanKLCase(NamedTuple):
    """One call of `fused_span_kl`, or of `fused_linear_span_kl` if `hidden`.

    `supervised` is "some", "all" or "none" of the rows. Rows without a span hold NaN.
    """

    rows: int
    vocab: int
    dtype: torch.dtype
    divergence: str = "forward_kl"
    in_place: bool = False
    supervised: str = "some"
    hidden: bool = False
    reduction: str = "mean"

    def error(self, backend: str, device: torch.device) -> float:
        """Returns the largest relative error of loss and gradients, in units of the dtype's rounding.

        The error is infinite if a row without a span gets a gradient.
        """
        problem = _Problem(self, device)
        teacher = problem.random_side()

        def loss(name: str, student: list[Tensor], in_place: dict[str, bool]) -> Tensor:
            fused = fused_linear_span_kl if self.hidden else fused_span_kl
            teacher_side = [x.to(student[0].dtype) for x in teacher]
            options = {"divergence": self.divergence, "reduction": self.reduction, "backend": name, **in_place}
            return fused(*student, *teacher_side, problem.ids, **options).sum()

        return problem.error(loss, backend)


class TopkCase(NamedTuple):
    """One call of a top-k loss with `k` teacher columns and KL share `alpha`, from hidden states if `hidden`.

    `k` = 0 is a call of `fused_span_ce`. Rows without a span hold NaN.
    """

    rows: int
    vocab: int
    dtype: torch.dtype
    k: int = 5
    alpha: float = 1.0
    tail: str = "bucket"
    in_place: bool = False
    supervised: str = "some"
    hidden: bool = False

    def error(self, backend: str, device: torch.device) -> float:
        """See `SpanKLCase.error`."""
        problem = _Problem(self, device)
        logits = 3 * torch.randn(self.rows, self.vocab, generator=problem.generator)
        logprobs, columns = logits.log_softmax(-1).topk(max(self.k, 1))
        labels = torch.randint(0, self.vocab, (self.rows,), generator=problem.generator)
        labels[-1] = columns[-1, -1]  # a label in the top-k
        logprobs[problem.ids.cpu() == 0] = torch.nan
        logprobs, columns, labels = (x.to(device) for x in (logprobs, columns, labels))

        def loss(name: str, student: list[Tensor], in_place: dict[str, bool]) -> Tensor:
            if self.k == 0:
                return fused_span_ce(*student, labels, problem.ids, backend=name, **in_place)
            fused = fused_linear_topk_span_kl if self.hidden else fused_topk_span_kl
            options = {"tail": self.tail, "alpha": self.alpha, "target_ids": labels, "backend": name, **in_place}
            return fused(*student, logprobs, columns, problem.ids, **options)

        return problem.error(loss, backend)


class _Problem:
    """The student of a case, and the error of a backend's loss and gradients against the reference in float64."""

    def __init__(self, case: SpanKLCase | TopkCase, device: torch.device) -> None:
        self.case, self.device = case, device
        self.generator = torch.Generator().manual_seed(case.rows + case.vocab)
        ids = torch.full((case.rows,), 1 if case.supervised == "all" else 0)
        if case.supervised == "some":
            ids[::2] = 2
        self.ids = ids.to(device)
        self.student = self.random_side()

    def random_side(self) -> list[Tensor]:
        """Returns random logits, or random hidden states and an lm_head.

        The latter hold multiples of 1/4 and integers, so that no dtype rounds their products.
        """
        case = self.case
        if case.hidden:
            rows = torch.randint(-4, 5, (case.rows, _HIDDEN_SIZE), generator=self.generator) / 4
            weight = torch.randint(-1, 2, (case.vocab, _HIDDEN_SIZE), generator=self.generator).float()
        else:
            rows, weight = 3 * torch.randn(case.rows, case.vocab, generator=self.generator), None
        rows[self.ids.cpu() == 0] = torch.nan
        return [x.to(self.device, case.dtype) for x in (rows, weight) if x is not None]

    def error(self, loss: Callable[[str, list[Tensor], dict[str, bool]], Tensor], backend: str) -> float:
        """Returns the error of `loss(backend, student, options)` and its gradients; see `SpanKLCase.error`."""
        results = []
        for name, convert in (("reference", torch.Tensor.double), (backend, torch.clone)):
            leaves = [convert(x).requires_grad_() for x in self.student]
            in_place = {} if self.case.hidden else {"inplace_backward": self.case.in_place and name == backend}
            value = loss(name, [leaf * 1.0 for leaf in leaves], in_place)  # a gradient cannot overwrite a leaf
            value.backward()
            results.append((value.item(), [leaf.grad.double() for leaf in leaves]))
        (exact_value, exact_gradients), (value, gradients) = results
        if gradients[0][self.ids == 0].any():
            return float("inf")
        if self.case.supervised == "none":
            return 0.0 if value == 0 else float("inf")
        errors = [abs(value / exact_value - 1)]
        errors += [float((got - exact).abs().max() / exact.abs().max()) for got, exact in zip(gradients, exact_gradients)]
        largest = max(errors) if all(error == error for error in errors) else float("nan")
        return largest / (torch.finfo(self.case.dtype).eps + 1e-5)


class SpanIdsCase(NamedTuple):
    """One call of `span_ids_from_offsets`: `rows` rows of `tokens` tokens with `spans` spans each.

    The first of several rows has no spans. Tokens overlap and are not sorted.
    """

    rows: int
    tokens: int
    spans: int
    masks: bool = False

    def error(self, backend: str, device: torch.device) -> float:
        """Returns 0 if all labels are right, else infinity."""
        generator = torch.Generator().manual_seed(self.rows + self.tokens)
        begins = torch.randint(0, 4 * self.tokens, (self.rows, self.tokens), generator=generator)
        widths = torch.randint(0, 9, begins.shape, generator=generator)
        offsets = torch.stack([begins, begins + widths], dim=-1)
        edges = torch.stack([torch.randperm(4 * self.tokens, generator=generator) for _ in range(self.rows)])
        edges = edges[:, : 2 * self.spans].sort().values[1 if self.rows > 1 else 0 :].flatten()
        kinds = torch.randint(1, 3, (len(edges) // 2,), generator=generator)
        row_splits = self.spans * torch.arange(self.rows + 1)
        if self.rows > 1:
            row_splits = torch.cat([torch.zeros(1, dtype=torch.int64), row_splits[:-1]])
        spans = (edges[::2], edges[1::2], kinds, row_splits)
        expected = span_ids_from_offsets(offsets, *spans, masks=self.masks, backend="reference")
        labels = span_ids_from_offsets(offsets.to(device), *spans, masks=self.masks, backend=backend)
        pairs = zip(expected, labels) if self.masks else [(expected, labels)]
        return 0.0 if all(x.dtype == y.dtype and torch.equal(x, y.cpu()) for x, y in pairs) else float("inf")


Case = SpanKLCase | TopkCase | SpanIdsCase


def all_cases(op: str, small_only: bool = False) -> Iterator[Case]:
    """Yields every case of `op`, or with `small_only` those of the small sizes."""
    if op == "span_ids":
        for (rows, tokens, spans), masks in product(((1, 1, 1), (3, 100, 0), (5, 77, 9), (64, 512, 40)), (False, True)):
            if rows * tokens < 1000 or not small_only:
                yield SpanIdsCase(rows, tokens, spans, masks)
        return
    sizes = SIZES[:2] if small_only else SIZES
    case = SpanKLCase if op == "span_kl" else TopkCase
    for (rows, vocab), dtype, in_place, supervised in product(sizes, DTYPES, (False, True), ("some", "all", "none")):
        yield case(rows, vocab, dtype, in_place=in_place, supervised=supervised)
    for (rows, vocab), dtype in product(sizes[:3], DTYPES):
        yield case(rows, vocab, dtype, hidden=True)
        if op == "topk_span_kl":
            yield TopkCase(rows, vocab, dtype, alpha=0.6)
            yield TopkCase(rows, vocab, dtype, k=0)
    if small_only:
        return
    rows, vocab = SIZES[1]
    for dtype, in_place in product(DTYPES[:2], (False, True)):
        if op == "span_kl":
            for divergence in ("reverse_kl", "jsd"):
                yield SpanKLCase(rows, vocab, dtype, divergence, in_place)
        else:
            yield TopkCase(rows, vocab, dtype, 64, tail="ignore", in_place=in_place)
            yield TopkCase(rows, vocab, dtype, vocab, in_place=in_place)  # the top-k is the whole vocabulary


def quick_cases(op: str) -> list[Case]:
    """Returns a few cases of `op`, the most informative first."""
    if op == "span_ids":
        return [SpanIdsCase(5, 77, 9), SpanIdsCase(5, 77, 9, masks=True), SpanIdsCase(3, 100, 0)]
    if op == "topk_span_kl":
        return [
            TopkCase(9, 1001, torch.bfloat16),
            TopkCase(9, 1001, torch.float32, 40, alpha=0.6, in_place=True),
            TopkCase(3, 50257, torch.bfloat16, 64),
            TopkCase(9, 1001, torch.float32, k=0),
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
class Result:
    """The result of running an op's cases on a backend.

    Args:
        cases: Number of cases, including those that did not run because the time was over.
        ran: Number of cases that ran.
        largest_error: Largest error of the cases that ran, in units of the dtype's rounding; up to `ALLOWED` passes.
        seconds: Run time, including compilation.
        failures: One line per case that was wrong or raised.
    """

    cases: int
    ran: int = 0
    largest_error: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether at least one case ran and none failed."""
        return self.ran > 0 and not self.failures


def run(
    cases: Iterable[Case],
    backend: str,
    device: torch.device,
    *,
    seconds: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Runs cases on an available backend. After `seconds` no further case starts; the first case always runs."""
    cases, begin = list(cases), clock()
    result = Result(len(cases))
    for case in cases:
        if result.ran and clock() - begin > seconds:
            break
        result.ran += 1
        try:
            error = case.error(backend, device)
        except Exception as raised:  # from a compiler or a driver, of any type; each is a failure to report
            first_line = (str(raised).splitlines() or [""])[0]
            result.failures.append(f"{case} raised {type(raised).__name__}: {first_line}")
            continue
        result.largest_error = max(result.largest_error, error)
        if not error <= ALLOWED:  # also true for NaN
            result.failures.append(f"{case} is wrong: error {error:.3g} times the rounding of its dtype")
    result.seconds = clock() - begin
    return result
