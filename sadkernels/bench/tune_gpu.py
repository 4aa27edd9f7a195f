"""The calls that `sad tune` checks and times on a real GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sadkernels import backends, selftest, tuning
from sadkernels.bench.cases import Case
from sadkernels.bench.problem import Problem, make_problem
from sadkernels.bench.timing import EventClock
from sadkernels.bench.tune import Stage
from sadkernels.ops.linear_span_kl import fused_linear_span_kl
from sadkernels.ops.span_kl import fused_span_kl
from sadkernels.ops.topk_span_kl import fused_topk_span_kl
from sadkernels.selftest import SpanKLCase, TopkCase
from sadkernels.tuning import Choice

FEW_ROWS = 16  # of the settings "*.slices"
TOP_K = 64
HIDDEN = 2048
_LEAST_TOKENS = 128
_BUFFERS = 4  # (N, V) of a call from logits: both sides, the copy of the student's, and the gradient


class RealCard:
    """Runs the calls on a GPU; see `sadkernels.bench.tune.Card`.

    Args:
        device: The GPU.
        tokens: Rows of a timed call, all supervised. It has fewer if the memory does not suffice.
        clock: Times one call. Default: events on the stream, with a cold L2 cache.
    """

    def __init__(
        self, device: torch.device, tokens: int, clock: Callable[[Callable[[], object]], float] | None = None
    ) -> None:
        self._device, self._tokens = device, tokens
        self._clock = EventClock(device) if clock is None else clock
        self._problem: Problem | None = None

    def fault(self, stage: Stage, choices: Mapping[str, Choice]) -> str | None:
        """See `Card`."""
        with tuning.forced(choices):
            result = selftest.run(small_cases(stage), _backend(stage, choices), self._device)
        return None if result.passed else result.failures[0]

    def seconds(self, stage: Stage, choices: Mapping[str, Choice]) -> float:
        """See `Card`."""
        backend = _backend(stage, choices)
        try:
            problem = self._problem_for(_case(stage, self._tokens_for(stage)))
            with tuning.forced(choices):
                return self._clock(lambda: _run(stage, problem, backend))
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from None

    def _problem_for(self, case: Case) -> Problem:
        """Returns the inputs of a case. Only those of the last case are kept, because they can fill half of the memory."""
        if self._problem is None or self._problem.case != case:
            self._problem = None  # frees the memory first
            self._problem = make_problem(case, self._device)
        return self._problem

    def _tokens_for(self, stage: Stage) -> int:
        if stage.setting.endswith(".slices"):
            return FEW_ROWS
        if self._device.type != "cuda":
            return self._tokens
        memory = torch.cuda.get_device_properties(self._device).total_memory // 2
        fit = memory // (_BUFFERS * stage.vocab_size * getattr(torch, stage.dtype).itemsize)
        return max(_LEAST_TOKENS, min(self._tokens, fit))


def runnable(device: torch.device) -> list[str]:
    """Returns which of the backends "triton" and "cuda" can run on a device."""
    return [name for name in ("triton", "cuda") if backends.why_not(name, "span_kl", device) is None]


def small_cases(stage: Stage) -> list[selftest.Case]:
    """Returns the calls that are compared with float64: more rows than programs, several tiles per row, and odd sizes."""
    dtype = getattr(torch, stage.dtype)
    _, _, kind = stage.setting.partition(".")
    if kind == "slices":
        return [SpanKLCase(3, 50257, dtype), SpanKLCase(3, 50257, dtype, "reverse_kl")]
    if kind in ("topk", "topk_span_kl"):
        return [TopkCase(600, 8209, dtype, TOP_K), TopkCase(9, 1001, dtype, in_place=True)]
    if kind == "chunk":
        return [SpanKLCase(1300, 257, dtype, supervised="all", hidden=True)]
    if kind == "one_pass":
        return [SpanKLCase(rows, vocab, dtype, reduction="none") for rows, vocab in ((600, 8209), (9, 1001))]
    divergences = {"triton.roomy": ("jsd",), "cuda.roomy": ("jsd", "reverse_kl")}.get(stage.setting, ("forward_kl",))
    return [
        SpanKLCase(rows, vocab, dtype, name, in_place=rows == 9)
        for name in divergences
        for rows, vocab in ((600, 8209), (9, 1001))
    ]


def _backend(stage: Stage, choices: Mapping[str, Choice]) -> str:
    kind, _, _ = stage.setting.partition(".")
    if kind == "backend":
        return choices[stage.setting]["backend"]
    return "auto" if kind == "linear" else kind


def _case(stage: Stage, tokens: int) -> Case:
    hidden = (HIDDEN, HIDDEN) if stage.setting == "linear.chunk" else None
    k = min(TOP_K, stage.vocab_size) if stage.setting in ("triton.topk", "backend.topk_span_kl") else 0
    return Case(tokens, stage.vocab_size, stage.dtype, 1.0, hidden, k)


def _run(stage: Stage, problem: Problem, backend: str) -> None:
    problem.reset()
    problem.backward(_loss(stage, problem, backend))


def _loss(stage: Stage, problem: Problem, backend: str) -> Tensor:
    ids = problem.span_ids
    if problem.case.k:
        return fused_topk_span_kl(problem.student, problem.teacher_logprobs, problem.teacher_ids, ids, backend=backend)
    if problem.case.hidden:
        sides = problem.student_hidden, problem.student_weight, problem.teacher_hidden, problem.teacher_weight
        return fused_linear_span_kl(*sides, ids, backend=backend)
    divergence = "jsd" if stage.setting.endswith(".roomy") else "forward_kl"
    reduction = "none" if stage.setting.endswith(".one_pass") else "mean"
    options = {"divergence": divergence, "reduction": reduction, "backend": backend}
    return fused_span_kl(problem.student, problem.teacher, ids, **options).sum()
