"""The losses of structured agent distillation, drop-in: tensors in, a scalar out, on any backend."""

from __future__ import annotations

import torch
from torch import Tensor

from sadkernels import checks
from sadkernels.kinds import SpanKind
from sadkernels.ops import span_kl as _op
from sadkernels.stats import KindStats, SpanStats

__all__ = ["KindStats", "SpanStats", "fused_span_kl", "span_ids_from_masks"]


def fused_span_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    span_ids: Tensor,
    *,
    lambda_reason: float = 1.0,
    lambda_act: float = 1.0,
    temperature: float = 1.0,
    reduction: str = "mean",
    normalizer: float | tuple[float, float] | Tensor | None = None,
    shift: bool = False,
    vocab_size: int | None = None,
    divergence: str = "forward_kl",
    inplace_backward: bool = False,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, SpanStats]:
    r"""KL(teacher || student) on the reasoning and the action tokens of agent trajectories, fused.

        L = lambda_r sum_t m_r(t) KL(p_T(x_t) || p_S(x_t)) + lambda_a sum_t m_a(t) KL(p_T(x_t) || p_S(x_t))

    (Structured Agent Distillation, eqs. 4 to 6), where p = softmax(logits / temperature). One pass over the supervised
    rows gives loss, statistics and gradient; other rows are never read and get a gradient of exactly 0, and no buffer of
    the logits' size is made besides the gradient. The same bits on every run.

    Args:
        student_logits: (..., V_s), float32, bfloat16 or float16 (float64 on `reference`), any strides with a unit stride
            on V. Receives the gradient, in its dtype.
        teacher_logits: (..., V_t), dtype and V may differ from the student's. Must not require grad.
        span_ids: (...,), any integer dtype: 0 none, 1 reason, 2 act (`sad.Span.REASON`, `sad.Span.ACT`); any other
            value, such as -100, means none.
        lambda_reason: Weight of the reasoning tokens, >= 0.
        lambda_act: Weight of the action tokens, >= 0. Rows of weight 0 count in "mean" but are read for statistics only.
        temperature: T > 0, divides both sides' logits. The loss is the KL of the tempered distributions, not
            multiplied by T^2.
        reduction: "sum" is L. "mean" divides it by the number of supervised tokens n_r + n_a. "span_mean" is
            lambda_r L_cot / n_r + lambda_a L_act / n_a. "none" gives the KL of every token, not weighted by lambda, in the
            shape of `span_ids`. Without a supervised token the loss and the gradient are exactly 0.
        normalizer: Replaces the local token counts in "mean" (a number or a 0-dim tensor on the logits' device) and in
            "span_mean" (two of them): the global count under gradient accumulation and data parallelism.
        shift: For logits (..., T, V) of a causal model: row t is judged by the span id of token t + 1. Nothing is copied;
            the last row carries no loss and the id of token 0 counts nowhere.
        vocab_size: The softmaxes run over the first `vocab_size` columns of both sides; the gradient beyond is 0.
            Default: min(V_s, V_t), which is right for vocabularies padded to different sizes.
        divergence: "forward_kl".
        inplace_backward: Write the gradient over `student_logits`, whose contents are undefined from the call on. No
            gradient buffer is allocated; a second backward raises, as does the backward of another op that saved the
            logits. Without grad mode nothing is written.
        return_stats: Also return `SpanStats` from the same pass, without a device sync.
        backend: "auto", or one of "reference", "cpu", "triton" by name, which never falls back.

    Returns:
        The loss, a float32 scalar (float64 if an input is); with `return_stats` a pair (loss, `SpanStats`). The KL is
        never negative; it is +inf where the student's logit is -inf and the teacher's is not, and the gradient q - p stays
        finite there. A NaN logit in a supervised row makes the loss NaN, as does a row whose columns are all -inf.

    Raises:
        ValueError: A shape, device, number or name is not usable; the message names the argument and the remedy.
        TypeError: An argument is of the wrong type or dtype.
        sadkernels.backends.BackendUnavailableError: The backend named cannot run these tensors here.

    Example:
        >>> loss = sad.fused_span_kl(student(x).logits, teacher_logits, span_ids, shift=True)
        >>> loss.backward()
    """
    return _op.span_kl(
        student_logits,
        teacher_logits,
        span_ids,
        lambda_reason=lambda_reason,
        lambda_act=lambda_act,
        temperature=temperature,
        reduction=reduction,
        normalizer=normalizer,
        shift=shift,
        vocab_size=vocab_size,
        divergence=divergence,
        inplace_backward=inplace_backward,
        return_stats=return_stats,
        backend=backend,
    )


def span_ids_from_masks(reason_mask: Tensor, act_mask: Tensor) -> Tensor:
    """The paper's two binary masks as one id per token.

    Args:
        reason_mask: m_r, bool or 0/1 integers, any shape.
        act_mask: m_a, same shape and device.

    Returns:
        uint8 of the masks' shape: 0 none, 1 reason, 2 act.

    Raises:
        ValueError: Shapes or devices differ, a mask holds something other than 0 and 1, or a token is in both masks
            (the method requires m_r(t) + m_a(t) <= 1, section 3.3). Finding out waits for the device.
        TypeError: A mask is not a tensor of bools or integers.
    """
    masks = []
    for name, mask in (("reason_mask", reason_mask), ("act_mask", act_mask)):
        if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            checks.fail(name, "a bool or integer tensor", got, "Compare it: `mask > 0`.", TypeError)
        if mask.shape != reason_mask.shape or mask.device != reason_mask.device:
            got = f"{tuple(mask.shape)} on {mask.device}"
            expected = f"shape {tuple(reason_mask.shape)} on {reason_mask.device}, like reason_mask"
            checks.fail(name, expected, got, "Build both masks from the same tokens.")
        if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
            checks.fail(name, "only 0 and 1", "other values", "Compare it: `mask > 0`.")
        masks.append(mask != 0)
    both = int((masks[0] & masks[1]).sum())
    if both:
        checks.fail("act_mask", "no token that is also in reason_mask", f"{both} such tokens", "Give each token one span.")
    return masks[0].to(torch.uint8) * SpanKind.REASON + masks[1].to(torch.uint8) * SpanKind.ACT
