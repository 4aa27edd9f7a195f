"""Who is measured: PyTorch, other libraries, and `sad` on every backend."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from sadkernels import backends
from sadkernels.bench import peers, topk_providers
from sadkernels.bench.cases import LINEAR, SPAN_KL
from sadkernels.bench.problem import LinearProblem, LogitsProblem, Problem
from sadkernels.bench.provider import BASELINE, Provider, missing_backend
from sadkernels.ops.linear_span_kl import fused_linear_span_kl
from sadkernels.ops.span_kl import fused_span_kl


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """(N,), as plain implementations write it, in the logits' dtype."""
    log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def _masked(student: Tensor, teacher: Tensor, ids: Tensor) -> Tensor:
    mask = ids > 0
    return (_kl(student, teacher) * mask).sum() / mask.sum()


def _logits(problem: Problem, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
    """Both sides' logits of some rows."""
    if isinstance(problem, LogitsProblem):
        return problem.student[rows], problem.teacher[rows]
    student = problem.student_hidden[rows] @ problem.student_weight.T
    return student, problem.teacher_hidden[rows] @ problem.teacher_weight.T


def _pytorch(problem: Problem) -> Tensor:
    return _masked(*_logits(problem, slice(None)), problem.ids)


def _pytorch_gathered(problem: Problem) -> Tensor:
    return _kl(*_logits(problem, problem.ids.nonzero().squeeze(-1))).mean()


class _Compiled:
    """`torch.compile` of PyTorch's way, anew for each shape, so that no kernel is made for sizes it does not know."""

    def __init__(self) -> None:
        self._shape: tuple[object, ...] = ()

    def __call__(self, problem: LogitsProblem) -> Tensor:
        shape = (*problem.student.shape, problem.student.dtype, problem.device)
        if shape != self._shape:
            torch.compiler.reset()
            self._compiled, self._shape = torch.compile(_masked, dynamic=False), shape
        return self._compiled(problem.student, problem.teacher, problem.ids)


def _ours(problem: LogitsProblem, backend: str, in_place: bool) -> Tensor:
    return fused_span_kl(problem.student, problem.teacher, problem.ids, inplace_backward=in_place, backend=backend)


def _ours_from_hidden(problem: LinearProblem, backend: str) -> Tensor:
    student, teacher = (problem.student_hidden, problem.student_weight), (problem.teacher_hidden, problem.teacher_weight)
    return fused_linear_span_kl(*student, *teacher, problem.ids, backend=backend)


def _all() -> dict[str, list[Provider]]:
    missing = {name: functools.partial(missing_backend, backend=name, op="span_kl") for name in backends.PACKAGES}
    buffers = dict.fromkeys(backends.PACKAGES, 2.0) | {"reference": 16.0}
    too_slow = {"reference": "left out of quick runs: it is there to be read"}
    span_kl = [
        Provider(BASELINE, _pytorch),
        Provider("pytorch-gathered", _pytorch_gathered, logits_buffers=9),
        Provider("pytorch-compiled", _Compiled(), too_slow="left out of quick runs: it compiles for many seconds"),
        Provider("liger", peers.liger_masked, peers.liger_missing, logits_buffers=9),
        Provider("liger-gathered", peers.liger_gathered, peers.liger_missing, logits_buffers=11),
    ]
    linear = [
        Provider(BASELINE, _pytorch, logits_buffers=8),
        Provider("pytorch-gathered", _pytorch_gathered, logits_buffers=8),
        Provider("liger", peers.liger_masked, peers.liger_missing),
        Provider("liger-gathered", peers.liger_gathered, peers.liger_missing),
        Provider("trl", peers.trl, peers.trl_missing),
    ]
    for name in backends.PACKAGES:
        run = functools.partial(_ours, backend=name, in_place=False)
        span_kl.append(Provider(f"sad-{name}", run, missing[name], buffers[name], too_slow=too_slow.get(name)))
        if name != "reference":  # which in place only copies
            run = functools.partial(_ours, backend=name, in_place=True)
            span_kl.append(Provider(f"sad-{name}-inplace", run, missing[name], buffers[name], in_place=True))
        run = functools.partial(_ours_from_hidden, backend=name)
        linear.append(Provider(f"sad-{name}", run, missing[name], buffers[name], too_slow=too_slow.get(name)))
    return {SPAN_KL: span_kl, LINEAR: linear, **topk_providers.PROVIDERS}


PROVIDERS = _all()
NAMES = list(dict.fromkeys(provider.name for of_op in PROVIDERS.values() for provider in of_op))
