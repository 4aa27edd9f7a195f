"""The measured implementations of each loss: PyTorch, Liger-Kernel, TRL, and `sad` on every backend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sadkernels import backends
from sadkernels.bench import peers
from sadkernels.bench.cases import LINEAR, LINEAR_TOPK, SPAN_KL, TOPK, Case
from sadkernels.bench.problem import LinearProblem, LogitsProblem, Problem
from sadkernels.ops.linear_span_kl import fused_linear_span_kl
from sadkernels.ops.linear_topk_span_kl import fused_linear_topk_span_kl
from sadkernels.ops.span_kl import fused_span_kl
from sadkernels.ops.topk_span_kl import fused_topk_span_kl

BASELINE = "pytorch"


class Provider(NamedTuple):
    """One implementation of the mean loss of the supervised rows.

    Attributes:
        name: The name in the CSV and on the command line.
        loss: Computes the scalar loss of a problem.
        why_not: Returns why it cannot run a case on a device, in one line, or None if it can.
        logits_buffers: Upper estimate of its peak memory, in float32 tensors of the logits' shape. A case that would not fit
            is not tried on a CPU, where the system kills a process that needs too much memory.
        in_place: Whether it overwrites the student's logits.
        slow: Why quick runs skip it, in one line, or None if they do not.
        is_bound: Whether it is a part of the work of every implementation, not a loss. It is timed without a check.
    """

    name: str
    loss: Callable[[Problem], Tensor]
    why_not: Callable[[Case, torch.device], str | None] = lambda case, device: None
    logits_buffers: float = 6
    in_place: bool = False
    slow: str | None = None
    is_bound: bool = False

    @property
    def is_sad(self) -> bool:
        """Whether it is one of this package's backends."""
        return self.name.startswith("sad-")

    def bytes_needed(self, case: Case) -> int:
        """Returns an upper estimate of the bytes it allocates, gradients included."""
        buffers = int(4 * self.logits_buffers * case.rows * case.vocab)
        return buffers + (0 if case.hidden is None else 2 * case.input_bytes)


# --- PyTorch, as a user would write it


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns KL(teacher || student) per row, (N,), in the logits' dtype."""
    log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def _topk_kl(student: Tensor, logprobs: Tensor, ids: Tensor) -> Tensor:
    """Returns the KL against a top-k teacher per row, (N,): k columns, and the remaining mass of both sides as one more."""
    log_q = F.log_softmax(student.float(), -1).gather(-1, ids)
    p, q = logprobs.exp(), log_q.exp()
    p_tail, q_tail = 1 - p.sum(-1), 1 - q.sum(-1)
    return (p * (logprobs - log_q)).sum(-1) + p_tail * (p_tail.log() - q_tail.log())


def _masked_mean(kl: Tensor, span_ids: Tensor) -> Tensor:
    mask = span_ids > 0
    return (kl * mask).sum() / mask.sum()


def _masked_kl(student: Tensor, teacher: Tensor, span_ids: Tensor) -> Tensor:
    return _masked_mean(_kl(student, teacher), span_ids)


def _student_logits(problem: Problem, rows: slice | Tensor) -> Tensor:
    if isinstance(problem, LogitsProblem):
        return problem.student[rows]
    return problem.student_hidden[rows] @ problem.student_weight.T


def _teacher_logits(problem: Problem, rows: slice | Tensor) -> Tensor:
    if isinstance(problem, LogitsProblem):
        return problem.teacher[rows]
    return problem.teacher_hidden[rows] @ problem.teacher_weight.T


def _rows_kl(problem: Problem, rows: slice | Tensor) -> Tensor:
    """Returns the KL of some rows, (n,)."""
    student = _student_logits(problem, rows)
    if problem.case.k:
        return _topk_kl(student, problem.teacher_logprobs[rows], problem.teacher_ids[rows])
    return _kl(student, _teacher_logits(problem, rows))


def _pytorch(problem: Problem) -> Tensor:
    """Computes the KL of all rows and masks it."""
    return _masked_mean(_rows_kl(problem, slice(None)), problem.span_ids)


def _pytorch_gathered(problem: Problem) -> Tensor:
    """Gathers the supervised rows and computes their KL."""
    return _rows_kl(problem, problem.span_ids.nonzero().squeeze(-1)).mean()


class _Compiled:
    """`torch.compile` of the PyTorch baseline, recompiled for each shape, so that kernels know their sizes."""

    def __init__(self) -> None:
        self._shape: tuple[object, ...] = ()

    def __call__(self, problem: LogitsProblem) -> Tensor:
        shape = (*problem.student.shape, problem.student.dtype, problem.device)
        if shape != self._shape:
            torch.compiler.reset()
            self._compiled, self._shape = torch.compile(_masked_kl, dynamic=False), shape
        return self._compiled(problem.student, problem.teacher, problem.span_ids)


class _FourProducts(torch.autograd.Function):
    """The matrix products of a loss from hidden states: the logits of both sides, the gradients of hidden states and head.

    The student's logits stand for their own gradient, which has the same shape and dtype.
    """

    @staticmethod
    def forward(
        ctx: object, student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
    ) -> Tensor:
        student, teacher = student_hidden @ student_weight.T, teacher_hidden @ teacher_weight.T
        ctx.save_for_backward(student_hidden, student_weight, student)
        return student[0, 0] + teacher[0, 0]

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, dlogits = ctx.saved_tensors
        return dlogits @ weight, dlogits.T @ hidden, None, None


def _four_products(problem: LinearProblem) -> Tensor:
    """Runs the four matrix products on the supervised rows, each as a single product."""
    student, teacher = problem.student_hidden[problem.supervised], problem.teacher_hidden[problem.supervised]
    return _FourProducts.apply(student, problem.student_weight, teacher, problem.teacher_weight)


# --- sad


class _Output(torch.autograd.Function):
    """Makes the student's leaf the output of an operation, without a copy: a gradient cannot overwrite a leaf."""

    @staticmethod
    def forward(ctx: object, leaf: Tensor) -> Tensor:
        return leaf.detach()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def _sad(problem: Problem, backend: str, in_place: bool = False, stats: bool = False) -> Tensor:
    """Calls the public function for the problem's inputs. `in_place` needs logits, `stats` the full teacher's."""
    if problem.case.k:
        teacher = problem.teacher_logprobs, problem.teacher_ids
    elif isinstance(problem, LogitsProblem):
        teacher = (problem.teacher,)
    else:
        teacher = problem.teacher_hidden, problem.teacher_weight
    if isinstance(problem, LogitsProblem):
        fused = fused_topk_span_kl if problem.case.k else fused_span_kl
        student = _Output.apply(problem.student) if in_place else problem.student
        if stats:
            return fused_span_kl(student, *teacher, problem.span_ids, return_stats=True, backend=backend)[0]
        return fused(student, *teacher, problem.span_ids, inplace_backward=in_place, backend=backend)
    fused = fused_linear_topk_span_kl if problem.case.k else fused_linear_span_kl
    return fused(problem.student_hidden, problem.student_weight, *teacher, problem.span_ids, backend=backend)


def _why_not_backend(case: Case, device: torch.device, backend: str) -> str | None:
    """Returns why a backend cannot run a case, or None."""
    if backend == "cpu" and device.type != "cpu":
        return "it runs on CPUs"
    if backend in ("cuda", "triton") and device.type == "cpu":
        return "it runs on GPUs"  # Triton's interpreter is not measured
    return backends.why_not(backend, TOPK if case.k else SPAN_KL, device, case.torch_dtype)


def _sad_providers(in_place: bool, stats: bool = False) -> list[Provider]:
    """Returns one provider per backend, and further ones that work in place (`in_place`) or return statistics (`stats`)."""
    providers = []
    for backend in backends.PACKAGES:
        name, loss = f"sad-{backend}", functools.partial(_sad, backend=backend)
        why_not = functools.partial(_why_not_backend, backend=backend)
        if backend == "reference":  # its in-place form copies the gradient and has nothing to show
            providers.append(Provider(name, loss, why_not, logits_buffers=16, slow="skipped in quick runs: it is slow"))
            continue
        providers.append(Provider(name, loss, why_not, logits_buffers=2))
        if in_place:
            in_place_loss = functools.partial(loss, in_place=True)
            providers.append(Provider(f"{name}-inplace", in_place_loss, why_not, logits_buffers=2, in_place=True))
        if stats:
            with_stats = functools.partial(loss, stats=True)
            providers.append(Provider(f"{name}-stats", with_stats, why_not, logits_buffers=2, slow="skipped in quick runs"))
    return providers


PROVIDERS: dict[str, list[Provider]] = {
    SPAN_KL: [
        Provider(BASELINE, _pytorch),
        Provider("pytorch-gathered", _pytorch_gathered, logits_buffers=9),
        Provider("pytorch-compiled", _Compiled(), slow="skipped in quick runs: it compiles for many seconds"),
        Provider("liger", peers.liger, peers.why_not_liger, logits_buffers=9),
        Provider("liger-gathered", peers.liger_gathered, peers.why_not_liger, logits_buffers=11),
        *_sad_providers(in_place=True, stats=True),
    ],
    LINEAR: [
        Provider(BASELINE, _pytorch, logits_buffers=8),
        Provider("pytorch-gathered", _pytorch_gathered, logits_buffers=8),
        Provider("matrix-products", _four_products, logits_buffers=2, is_bound=True),
        Provider("liger", peers.liger, peers.why_not_liger),
        Provider("liger-gathered", peers.liger_gathered, peers.why_not_liger),
        Provider("liger-float32", peers.liger_float32, peers.why_not_liger),
        Provider("trl", peers.trl, peers.why_not_trl),
        *_sad_providers(in_place=False),
    ],
    TOPK: [
        Provider(BASELINE, _pytorch),
        Provider("pytorch-gathered", _pytorch_gathered, logits_buffers=8),
        Provider("trl", peers.trl_topk, peers.why_not_trl_topk),
        *_sad_providers(in_place=True),
    ],
    LINEAR_TOPK: [
        Provider(BASELINE, _pytorch, logits_buffers=7),
        Provider("pytorch-gathered", _pytorch_gathered, logits_buffers=7),
        Provider("trl", peers.trl_topk, peers.why_not_trl_topk, logits_buffers=7),
        *_sad_providers(in_place=False),
    ],
}
NAMES = list(dict.fromkeys(provider.name for providers in PROVIDERS.values() for provider in providers))
