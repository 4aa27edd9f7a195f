"""Calls to other libraries, Liger-Kernel and TRL, and the reasons why they cannot run here."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import SimpleNamespace

import torch
from torch import Tensor

from sadkernels.bench.cases import Case
from sadkernels.bench.problem import LinearProblem, LogitsProblem, Problem

_IGNORED = -100  # label of an unsupervised row
_TRL_SERVER = "trl.experimental.server_distillation.server_distillation_trainer"


@functools.cache
def _import_error(package: str, module: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return "not installed"
    try:
        importlib.import_module(module)
    except Exception as error:  # another package's import can raise anything
        return f"installed, but {module} cannot be imported: {' '.join(str(error).split())}"
    return None


def why_not_liger(case: Case, device: torch.device) -> str | None:
    """Returns why Liger-Kernel cannot run on the device, or None."""
    if device.type != "cuda":
        return "its Triton kernels need a GPU"
    return _import_error("liger_kernel", "liger_kernel.transformers.fused_linear_jsd")


def why_not_trl(case: Case, device: torch.device) -> str | None:
    """Returns why TRL's chunked divergence cannot run here, or None."""
    return _import_error("trl", "trl.kernels.chunked_divergence")


def why_not_trl_topk(case: Case, device: torch.device) -> str | None:
    """Returns why TRL's loss against a top-k teacher cannot run here, or None."""
    return _import_error("trl", _TRL_SERVER)


def liger(problem: Problem) -> Tensor:
    """Calls Liger-Kernel on all rows, with its own mask."""
    return _liger(problem, slice(None), torch.where(problem.span_ids > 0, 0, _IGNORED))


def liger_gathered(problem: Problem) -> Tensor:
    """Gathers the supervised rows and calls Liger-Kernel on them."""
    return _liger(problem, problem.span_ids.nonzero().squeeze(-1), None)


def liger_float32(problem: LinearProblem) -> Tensor:
    """Calls Liger-Kernel from hidden states, with the head's gradient summed in float32 as `sad` does."""
    return _liger(problem, slice(None), torch.where(problem.span_ids > 0, 0, _IGNORED), torch.float32)


def _liger(problem: Problem, rows: slice | Tensor, labels: Tensor | None, accum_dtype: torch.dtype | None = None) -> Tensor:
    """Calls its JSD at beta = 0, the forward KL. From logits it needs log-probabilities, made as in its docstring."""
    if isinstance(problem, LogitsProblem):
        from liger_kernel.transformers.jsd import LigerJSD

        log_q, log_p = (x[rows].log_softmax(-1) for x in (problem.student, problem.teacher))
        return LigerJSD(beta=0.0)(log_q, log_p, labels)
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    student, teacher = problem.student_hidden[rows], problem.teacher_hidden[rows]
    loss = LigerFusedLinearJSD(jsd_beta=0.0, accum_dtype=accum_dtype)
    return loss(student, problem.student_weight, teacher, problem.teacher_weight, labels)


def trl(problem: LinearProblem) -> Tensor:
    """Calls TRL's chunked divergence at beta = 0 on the supervised rows, as its distillation trainer does on GPUs."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    supervised = problem.span_ids > 0
    student = problem.student_hidden[supervised], problem.student_weight, None
    teacher = problem.teacher_hidden[supervised], problem.teacher_weight, None
    per_token, _ = ChunkedDivergenceFunction.apply(*student, *teacher, 0.0)
    return per_token.mean()


def trl_topk(problem: Problem) -> Tensor:
    """Calls the loss of TRL's trainer for a teacher on a server, on the student's log-softmax as the trainer does.

    The loss is private and experimental. If TRL moves it, `why_not_trl_topk` or the row's status reports this.
    """
    trainer = importlib.import_module(_TRL_SERVER).ServerDistillationTrainer
    config = SimpleNamespace(loss_add_tail=True, _reduce_divergence_loss=trainer._reduce_divergence_loss)
    if isinstance(problem, LogitsProblem):
        student = problem.student
    else:
        student = problem.student_hidden @ problem.student_weight.T
    teacher = {"topk_logprobs": problem.teacher_logprobs, "topk_token_ids": problem.teacher_ids}
    labels = torch.where(problem.span_ids > 0, 0, _IGNORED)
    return trainer._compute_server_forward_kl_loss(config, teacher, student.float().log_softmax(-1), labels)
