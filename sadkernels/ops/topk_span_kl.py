"""The losses without the teacher's logits: KL to its likeliest columns, and cross-entropy; checked once, here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sadkernels import checks
from sadkernels.ops.topk_arguments import check_list, check_mixture, check_options, check_target_ids
from sadkernels.ops.topk_span_kl_library import Targets, topk_span_kl_op
from sadkernels.stats import SpanStats, span_stats

_LIKE = "student_logits without V"


def fused_topk_span_kl(
    student_logits: Tensor,
    teacher_logprobs: Tensor,
    teacher_ids: Tensor,
    span_ids: Tensor,
    *,
    tail: str = "bucket",
    target_ids: Tensor | None = None,
    alpha: float = 1.0,
    lambda_reason: float = 1.0,
    lambda_act: float = 1.0,
    temperature: float = 1.0,
    reduction: str = "mean",
    normalizer: float | tuple[float, float] | Tensor | None = None,
    shift: bool = False,
    vocab_size: int | None = None,
    logit_scale: float | None = None,
    logit_softcap: float | None = None,
    inplace_backward: bool = False,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, SpanStats]:
    r"""The span KL (eqs. 4 to 6) to a teacher of whom k log-probabilities a token are known, fused.

    With q = softmax(student_logits / temperature), p_i = exp(teacher_logprobs_i) and the tail all columns not listed:

        bucket   sum_i p_i log(p_i / q_i) + p_tail log(p_tail / q_tail),   p_tail = 1 - sum_i p_i,  q_tail = sum_tail q_j
        ignore   sum_i p_i log(p_i / q_i) with p renormalised over the listed columns

    Neither is ever negative. "bucket" is a lower bound of the KL to the whole teacher (data-processing inequality) and
    equals it when the list is the vocabulary. What the student puts on a single tail column costs nothing in "bucket" as
    long as the tail's sum is right; "ignore" takes the student's mass off the tail.

    Args:
        student_logits: (..., V), float32, bfloat16 or float16 (float64 on `reference`), any strides with a unit stride on V.
            Receives the gradient, in its dtype.
        teacher_logprobs: (..., k) log-probabilities of the teacher's whole softmax, in any of these dtypes, in any order.
            Must not require grad.
        teacher_ids: (..., k) their columns, any integer dtype. An id outside 0 .. V - 1 (such as -1 for padding) is absent:
            its log-probability is not looked at, and its mass is part of the tail. Of an id that is repeated in a row
            the first entry counts. A row with nothing listed adds 0.
        span_ids: (...,), as in `fused_span_kl`: 0 none, 1 reason, 2 act, anything else none.
        tail: "bucket" or "ignore".
        target_ids: (...,), any integer dtype: the tokens of the trajectory, for a loss of alpha KL + (1 - alpha) CE from one
            pass. With `shift` row t is judged by the target of t + 1, as by its span id. Outside 0 .. V - 1: no CE.
        alpha: Share of the KL, 0 to 1; less than 1 needs `target_ids`.
        lambda_reason: As in `fused_span_kl`, likewise `lambda_act`, `reduction`, `normalizer`, `shift`, `inplace_backward`,
            `return_stats` and `backend`.
        temperature: T > 0, divides the student's logits alone; the teacher's log-probabilities are taken as they are. So
            they must be of a softmax at this T: k numbers do not tell what the rest of a softmax is at another one.
        vocab_size: The student's softmax runs over the first `vocab_size` columns; the gradient beyond is 0.
        logit_scale: Multiplies the student's logits before anything else (> 0).
        logit_softcap: Replaces the student's logits x, already scaled, by cap tanh(x / cap) (cap > 0).

    Returns:
        The loss, a float32 scalar (float64 if an input is); with `return_stats` a pair (loss, `SpanStats`), in which
        `kl_sum` sums the losses of the tokens as mixed by alpha, `teacher_entropy_sum` is the entropy of the k + 1 outcomes
        (a lower bound of the teacher's), and `agreements` compares the student's argmax with the teacher's best listed
        column. The loss is +inf where the student's logit is -inf and the teacher's log-probability is not; the gradient
        stays finite there. NaN in a supervised row makes the loss NaN.

    Raises:
        ValueError: A shape, device, number or name is not usable; the message names the argument and the remedy.
        TypeError: An argument is of the wrong type or dtype.
        sadkernels.backends.BackendUnavailableError: The backend named cannot run these tensors here.

    Example:
        >>> logprobs, ids = teacher_logits.log_softmax(-1).topk(64)
        >>> loss = sad.fused_topk_span_kl(student(x).logits, logprobs, ids, span_ids, shift=True)
    """
    checks.check_logits("student_logits", student_logits)
    lead, device = student_logits.shape[:-1], student_logits.device
    check_list(teacher_logprobs, teacher_ids, lead, device, "the student's shape except for k")
    return _loss(
        student_logits,
        (teacher_logprobs, teacher_ids, target_ids),
        span_ids,
        normalizer,
        inplace_backward,
        tail=tail,
        alpha=check_mixture(alpha, target_ids, lead, device, _LIKE),
        lambda_reason=lambda_reason,
        lambda_act=lambda_act,
        temperature=temperature,
        reduction=reduction,
        shift=shift,
        vocab_size=vocab_size,
        logit_scale=logit_scale,
        logit_softcap=logit_softcap,
        return_stats=return_stats,
        backend=backend,
    )


def fused_span_ce(
    student_logits: Tensor,
    target_ids: Tensor,
    span_ids: Tensor,
    *,
    lambda_reason: float = 1.0,
    lambda_act: float = 1.0,
    temperature: float = 1.0,
    reduction: str = "mean",
    normalizer: float | tuple[float, float] | Tensor | None = None,
    shift: bool = False,
    vocab_size: int | None = None,
    logit_scale: float | None = None,
    logit_softcap: float | None = None,
    inplace_backward: bool = False,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, SpanStats]:
    r"""Cross-entropy on the reasoning and the action tokens (eq. 13), fused: no buffer but the gradient.

        L = lambda_r sum_t m_r(t) CE(x_t) + lambda_a sum_t m_a(t) CE(x_t),   CE = -log softmax(logits / temperature)[target]

    Args:
        student_logits: (..., V), as in `fused_span_kl`; receives the gradient.
        target_ids: (...,), any integer dtype: the right column of every row. One outside 0 .. V - 1, such as -100, adds 0
            to the sum, with a gradient of 0; its row still counts in "mean" if it has a span.
        span_ids: (...,), as in `fused_span_kl`.
        lambda_reason: As in `fused_span_kl`, likewise `lambda_act`, `reduction`, `normalizer`, `inplace_backward` and
            `backend`.
        temperature: Divides the logits.
        shift: For logits (..., T, V) of a causal model and `target_ids` as they were fed to it: row t is judged by the
            target and the span id of token t + 1.
        vocab_size: As in `fused_topk_span_kl`, likewise `logit_scale` and `logit_softcap`.
        return_stats: Also return `SpanStats`: `kl_sum` sums the cross-entropies, `teacher_entropy_sum` is 0, and
            `agreements` counts the tokens that the student would have chosen.

    Returns:
        The loss, a float32 scalar (float64 for float64 logits); with `return_stats` a pair (loss, `SpanStats`).

    Raises:
        ValueError, TypeError, sadkernels.backends.BackendUnavailableError: As in `fused_span_kl`.

    Example:
        >>> loss = sad.fused_span_ce(student(input_ids).logits, input_ids, span_ids, shift=True)
    """
    checks.check_logits("student_logits", student_logits)
    check_target_ids(target_ids, student_logits.shape[:-1], student_logits.device, _LIKE)
    return _loss(
        student_logits,
        (None, None, target_ids),
        span_ids,
        normalizer,
        inplace_backward,
        tail="ignore",
        alpha=0.0,
        lambda_reason=lambda_reason,
        lambda_act=lambda_act,
        temperature=temperature,
        reduction=reduction,
        shift=shift,
        vocab_size=vocab_size,
        logit_scale=logit_scale,
        logit_softcap=logit_softcap,
        return_stats=return_stats,
        backend=backend,
    )


def _loss(
    student_logits: Tensor,
    targets: tuple[Tensor | None, Tensor | None, Tensor | None],
    span_ids: Tensor,
    normalizer: float | tuple[float, float] | Tensor | None,
    inplace_backward: bool,
    **others: Any,
) -> Tensor | tuple[Tensor, SpanStats]:
    """Either loss, the rest of its arguments checked; `others` are those of `check_options`."""
    checks.check_span_ids("span_ids", span_ids, student_logits.shape[:-1], student_logits.device, "student_logits")
    if others["shift"] and student_logits.dim() < 2:
        checks.fail("shift", "logits of shape (..., T, V)", tuple(student_logits.shape), "Leave shift=False.")
    options = check_options(student_logits, **others)
    normalizer = checks.check_normalizer(normalizer, options.reduction, student_logits.device)
    if inplace_backward and torch.is_grad_enabled() and student_logits.requires_grad:
        checks.check_writable(student_logits)
    logprobs, ids, target_ids = targets
    everything = Targets(logprobs, ids, target_ids if options.alpha < 1.0 else None, span_ids, normalizer)
    loss, sums, counts = topk_span_kl_op(student_logits, everything, options, inplace_backward)
    return (loss, span_stats(sums, counts)) if options.stats else loss
