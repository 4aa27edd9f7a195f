"""Arguments of the losses against listed columns and labels, checked at the public functions."""

from __future__ import annotations

import torch
from torch import Tensor

from sadkernels import backends, checks
from sadkernels.ops.row_weights import REDUCTIONS
from sadkernels.ops.topk_span_kl_library import Options
from sadkernels.topk import TAILS


def check_list(logprobs: Tensor, ids: Tensor, lead: tuple[int, ...], device: torch.device, expected: str) -> None:
    """Log-probabilities and columns (*lead, k) on `device`; `expected` is that shape in words."""
    if not isinstance(logprobs, Tensor):
        checks.fail("teacher_logprobs", "a tensor", type(logprobs).__name__, "Pass log-probabilities (..., k).", TypeError)
    if not logprobs.is_floating_point():
        remedy = "Pass what `log_softmax(-1).topk(k)` gave."
        checks.fail("teacher_logprobs", "float32, bfloat16, float16 or float64", logprobs.dtype, remedy, TypeError)
    if logprobs.dim() < 1 or logprobs.shape[-1] < 1:
        checks.fail("teacher_logprobs", "shape (..., k) with k >= 1", tuple(logprobs.shape), "List at least one column.")
    if logprobs.shape[:-1] != lead:
        got = f"{tuple(logprobs.shape)} against {tuple(lead)}"
        checks.fail("teacher_logprobs", expected, got, "Give every row its k numbers.")
    if logprobs.requires_grad:
        checks.fail("teacher_logprobs", "a tensor without grad", "one that requires grad", "Pass `.detach()` of it.")
    if logprobs.device != device:
        got = f"one on {logprobs.device}"
        checks.fail("teacher_logprobs", f"a tensor on {device}", got, "Move it with `.to(...)`.")
    _check_integers("teacher_ids", ids, logprobs.shape, device, "teacher_logprobs")


def check_target_ids(target_ids: Tensor, lead: tuple[int, ...], device: torch.device, like: str) -> None:
    """Integers of shape `lead`, that of `like`."""
    _check_integers("target_ids", target_ids, lead, device, like)


def check_mixture(alpha: object, target_ids: Tensor | None, lead, device: torch.device, like: str) -> float:
    """The share of the KL; less than 1 needs targets."""
    alpha = checks.check_number("alpha", alpha, at_least=0.0)
    if alpha > 1.0:
        checks.fail("alpha", "a number from 0 to 1", alpha, "It is the share of the KL.")
    if target_ids is not None:
        check_target_ids(target_ids, lead, device, like)
    elif alpha < 1.0:
        checks.fail("target_ids", "a tensor with alpha < 1", None, "Pass the trajectory's tokens, or alpha=1.")
    return alpha


def check_options(
    columns: Tensor,
    *,
    tail: str,
    alpha: float,
    lambda_reason: float,
    lambda_act: float,
    temperature: float,
    reduction: str,
    shift: bool,
    vocab_size: int | None,
    logit_scale: float | None,
    logit_softcap: float | None,
    return_stats: bool,
    backend: str,
) -> Options:
    """What is no tensor. `columns` (..., V) has the student's columns last."""
    checks.check_choice("tail", tail, TAILS)
    checks.check_choice("reduction", reduction, REDUCTIONS)
    checks.check_choice("backend", backend, ("auto", *backends.PACKAGES))
    return Options(
        checks.check_number("lambda_reason", lambda_reason, at_least=0.0),
        checks.check_number("lambda_act", lambda_act, at_least=0.0),
        reduction,
        bool(shift),
        bool(return_stats),
        backend,
        tail,
        alpha,
        checks.check_vocab_size(vocab_size, columns, columns),
        checks.check_number("temperature", temperature, above=0.0),
        1.0 if logit_scale is None else checks.check_number("logit_scale", logit_scale, above=0.0),
        None if logit_softcap is None else checks.check_number("logit_softcap", logit_softcap, above=0.0),
    )


def _check_integers(name: str, ids: Tensor, shape: tuple[int, ...], device: torch.device, like: str) -> None:
    if not isinstance(ids, Tensor):
        checks.fail(name, "an integer tensor", type(ids).__name__, "Use `torch.as_tensor(ids)`.", TypeError)
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        checks.fail(name, "an integer dtype", ids.dtype, "They are columns of the vocabulary.", TypeError)
    if ids.shape != shape:
        checks.fail(name, f"shape {tuple(shape)}, that of {like}", tuple(ids.shape), "Give every row its own.")
    if ids.device != device:
        checks.fail(name, f"a tensor on {device}", f"one on {ids.device}", "Move it with `.to(...)`.")
