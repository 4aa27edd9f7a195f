"""Who is measured where k columns of the teacher are known: PyTorch, another library, and `sad` on every backend."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from sadkernels import backends
from sadkernels.bench import peers
from sadkernels.bench.cases import LINEAR_TOPK, TOPK, Case
from sadkernels.bench.problem import LinearProblem, LogitsProblem, Problem
from sadkernels.bench.provider import BASELINE, Provider, missing_backend
from sadkernels.ops.linear_topk_span_kl import fused_linear_topk_span_kl
from sadkernels.ops.topk_span_kl import fused_topk_span_kl


def _kl(student: Tensor, logprobs: Tensor, ids: Tensor) -> Tensor:
    """(N,), as plain implementations write it: a softmax, k of its columns, and what is left of both sums."""
    log_q = F.log_softmax(student.float(), -1).gather(-1, ids)
    p, q = logprobs.exp(), log_q.exp()
    p_tail, q_tail = 1 - p.sum(-1), 1 - q.sum(-1)
    return (p * (logprobs - log_q)).sum(-1) + p_tail * (p_tail.log() - q_tail.log())


def _logits(problem: Problem, rows: slice | Tensor) -> Tensor:
    if isinstance(problem, LogitsProblem):
        return problem.student[rows]
    return problem.student_hidden[rows] @ problem.student_weight.T


def _masked(student: Tensor, logprobs: Tensor, listed_ids: Tensor, ids: Tensor) -> Tensor:
    mask = ids > 0
    return (_kl(student, logprobs, listed_ids) * mask).sum() / mask.sum()


def _pytorch(problem: Problem) -> Tensor:
    return _masked(_logits(problem, slice(None)), problem.logprobs, problem.listed_ids, problem.ids)


def _pytorch_gathered(problem: Problem) -> Tensor:
    rows = problem.ids.nonzero().squeeze(-1)
    return _kl(_logits(problem, rows), problem.logprobs[rows], problem.listed_ids[rows]).mean()


def _ours(problem: LogitsProblem, backend: str, in_place: bool) -> Tensor:
    lists = problem.logprobs, problem.listed_ids
    return fused_topk_span_kl(problem.student, *lists, problem.ids, inplace_backward=in_place, backend=backend)


def _ours_from_hidden(problem: LinearProblem, backend: str) -> Tensor:
    lists = problem.logprobs, problem.listed_ids
    return fused_linear_topk_span_kl(problem.student_hidden, problem.student_weight, *lists, problem.ids, backend=backend)


def _not_offered(case: Case, device: torch.device) -> str:
    return "it has no loss against k listed columns"


def _all() -> dict[str, list[Provider]]:
    from_logits = [
        Provider(BASELINE, _pytorch),
        Provider("pytorch-gathered", _pytorch_gathered, logits_buffers=8),
        Provider("trl", peers.trl_listed, peers.trl_listed_missing),
        Provider("liger", _pytorch, _not_offered),
    ]
    from_hidden = [
        Provider(BASELINE, _pytorch, logits_buffers=7),
        Provider("pytorch-gathered", _pytorch_gathered, logits_buffers=7),
        Provider("trl", peers.trl_listed, peers.trl_listed_missing, logits_buffers=7),
        Provider("liger", _pytorch, _not_offered),
    ]
    for name in backends.PACKAGES:
        missing = functools.partial(missing_backend, backend=name, op="topk_span_kl")
        buffers, slow = (16.0, "left out of quick runs: it is there to be read") if name == "reference" else (2.0, None)
        run = functools.partial(_ours, backend=name, in_place=False)
        from_logits.append(Provider(f"sad-{name}", run, missing, buffers, too_slow=slow))
        if name != "reference":  # which in place only copies
            run = functools.partial(_ours, backend=name, in_place=True)
            from_logits.append(Provider(f"sad-{name}-inplace", run, missing, buffers, in_place=True))
        run = functools.partial(_ours_from_hidden, backend=name)
        from_hidden.append(Provider(f"sad-{name}", run, missing, buffers, too_slow=slow))
    return {TOPK: from_logits, LINEAR_TOPK: from_hidden}


PROVIDERS = _all()
