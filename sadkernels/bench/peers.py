"""Other libraries: whether they can run here, and how they are called."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import SimpleNamespace

import torch
from torch import Tensor

from sadkernels.bench.cases import Case
from sadkernels.bench.problem import LinearProblem, LogitsProblem, Problem

_IGNORED = -100  # the label of a row without loss
_TRL_SERVER = "trl.experimental.server_distillation.server_distillation_trainer"


@functools.cache
def _import_error(package: str, module: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return "not installed"
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a foreign package does when it is loaded
        return f"installed, but {module} cannot be imported: {' '.join(str(error).split())}"
    return None


def liger_missing(case: Case, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "its Triton kernels need a GPU"
    return _import_error("liger_kernel", "liger_kernel.transformers.fused_linear_jsd")


def trl_missing(case: Case, device: torch.device) -> str | None:
    return _import_error("trl", "trl.kernels.chunked_divergence")


def liger_masked(problem: Problem) -> Tensor:
    """Liger on all rows, with its own mask."""
    return _liger(problem, slice(None), torch.where(problem.ids > 0, 0, _IGNORED))


def liger_gathered(problem: Problem) -> Tensor:
    """Liger on the supervised rows alone, gathered first."""
    return _liger(problem, problem.ids.nonzero().squeeze(-1), None)


def _liger(problem: Problem, rows: slice | Tensor, labels: Tensor | None) -> Tensor:
    """Its JSD at beta = 0, which is the forward KL; from logits it takes log-probabilities, as its docstring makes them."""
    if isinstance(problem, LogitsProblem):
        from liger_kernel.transformers.jsd import LigerJSD

        log_q, log_p = (x[rows].log_softmax(-1) for x in (problem.student, problem.teacher))
        return LigerJSD(beta=0.0)(log_q, log_p, labels)
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    student, teacher = problem.student_hidden[rows], problem.teacher_hidden[rows]
    return LigerFusedLinearJSD(jsd_beta=0.0)(student, problem.student_weight, teacher, problem.teacher_weight, labels)


def trl(problem: LinearProblem) -> Tensor:
    """TRL's chunked divergence at beta = 0, on the supervised rows, as its distillation trainer calls it on GPUs."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    valid = problem.ids > 0
    student = problem.student_hidden[valid], problem.student_weight, None
    teacher = problem.teacher_hidden[valid], problem.teacher_weight, None
    per_token, _ = ChunkedDivergenceFunction.apply(*student, *teacher, 0.0)
    return per_token.mean()


def trl_listed_missing(case: Case, device: torch.device) -> str | None:
    return _import_error("trl", _TRL_SERVER)


def trl_listed(problem: Problem) -> Tensor:
    """The loss of TRL's trainer for a teacher behind a server, as it calls it on the student's log-softmax.

    Private and experimental: if it moves, `trl_listed_missing` or a failure says so.
    """
    trainer = importlib.import_module(_TRL_SERVER).ServerDistillationTrainer
    settings = SimpleNamespace(loss_add_tail=True, _reduce_divergence_loss=trainer._reduce_divergence_loss)
    if isinstance(problem, LogitsProblem):
        student = problem.student
    else:
        student = problem.student_hidden @ problem.student_weight.T
    lists = {"topk_logprobs": problem.logprobs, "topk_token_ids": problem.listed_ids}
    labels = torch.where(problem.ids > 0, 0, _IGNORED)
    return trainer._compute_server_forward_kl_loss(settings, lists, student.float().log_softmax(-1), labels)
