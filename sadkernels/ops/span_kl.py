"""The span KL on logits: the public function, which checks its arguments once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sadkernels import backends, checks
from sadkernels.divergence import DIVERGENCES
from sadkernels.ops import vocab_parallel
from sadkernels.ops.options import Options
from sadkernels.ops.row_weights import REDUCTIONS
from sadkernels.ops.span_kl_expecting import OnePassIfExpected
from sadkernels.ops.span_kl_library import OnePass
from sadkernels.stats import SpanStats, span_stats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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
    beta: float = 0.5,
    logit_scale: float | tuple[float, float] | None = None,
    logit_softcap: float | tuple[float | None, float | None] | None = None,
    process_group: ProcessGroup | None = None,
    inplace_backward: bool = False,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, SpanStats]:
    r"""KL(teacher || student) on the reasoning and the action tokens of agent trajectories, fused.

        L = lambda_r sum_t m_r(t) KL(p_T(x_t) || p_S(x_t)) + lambda_a sum_t m_a(t) KL(p_T(x_t) || p_S(x_t))

    (Structured Agent Distillation, eqs. 4 to 6), where p = softmax(logits / temperature). One call over the supervised
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
        divergence: "forward_kl" is KL(teacher || student), the paper's; "reverse_kl" is KL(student || teacher), MiniLLM's;
            "jsd" is beta KL(teacher || m) + (1 - beta) KL(student || m) with the mixture m = beta teacher +
            (1 - beta) student, the generalized Jensen-Shannon divergence of GKD (Agarwal et al., 2024).
        beta: The teacher's weight in "jsd", 0 < beta < 1. Towards 0 JSD / beta becomes forward_kl, towards 1
            JSD / (1 - beta) becomes reverse_kl.
        logit_scale: Multiplies the logits before anything else (> 0); a number for both sides, or (student, teacher).
        logit_softcap: Replaces logits x, already scaled, by cap tanh(x / cap) (cap > 0), as Gemma 2 does; a number for both
            sides, or (student, teacher) with None for a side without a cap.
        process_group: The ranks that share the vocabulary: each passes its slice of the columns of both logits, the same
            slice of both, slices in the order of the ranks, everything else equal on all ranks. `vocab_size` then counts
            the columns of the own slice. All ranks get the loss of the whole rows, and the gradient of their slice. Two to
            four numbers a row travel (`return_stats` adds six).
        inplace_backward: Write the gradient over `student_logits`, whose contents are undefined from the call on. No
            gradient buffer is allocated; a second backward raises, as does the backward of another op that saved the
            logits. Without grad mode nothing is written.
        return_stats: Also return `SpanStats` from the same pass, without a device sync.
        backend: "auto", or one of "reference", "cpu", "triton" by name, which never falls back.

    Returns:
        The loss, a float32 scalar (float64 if an input is); with `return_stats` a pair (loss, `SpanStats`). A divergence is
        never negative. "forward_kl" is +inf where the student's logit is -inf and the teacher's is not, and its gradient
        q - p stays finite there. "reverse_kl" is +inf where the teacher's logit is -inf and the student's is not, and its
        gradient is not finite there. "jsd" is always finite. A NaN logit in a supervised row makes the loss NaN, as does a
        row whose columns are all -inf.

    Raises:
        ValueError: A shape, device, number or name is not usable; the message names the argument and the remedy.
        TypeError: An argument is of the wrong type or dtype.
        sadkernels.backends.BackendUnavailableError: The backend named cannot run these tensors here.

    Example:
        >>> loss = sad.fused_span_kl(student(x).logits, teacher_logits, span_ids, shift=True)
        >>> loss.backward()
    """
    checks.check_logits("student_logits", student_logits)
    checks.check_logits("teacher_logits", teacher_logits)
    lead = student_logits.shape[:-1]
    if teacher_logits.shape[:-1] != lead:
        got = f"{tuple(teacher_logits.shape)} against {tuple(student_logits.shape)}"
        checks.fail("teacher_logits", "the student's shape except for V", got, "Run both models on the same tokens.")
    if teacher_logits.device != student_logits.device:
        got = f"{teacher_logits.device} against {student_logits.device}"
        checks.fail("teacher_logits", "the student's device", got, "Move one of them with `.to(...)`.")
    if teacher_logits.requires_grad:
        checks.fail("teacher_logits", "a tensor without grad", "one that requires grad", "Pass `teacher_logits.detach()`.")
    checks.check_span_ids("span_ids", span_ids, lead, student_logits.device, "student_logits")
    checks.check_choice("reduction", reduction, REDUCTIONS)
    checks.check_choice("divergence", divergence, DIVERGENCES)
    checks.check_choice("backend", backend, ("auto", *backends.PACKAGES))
    if shift and not lead:
        checks.fail("shift", "logits of shape (..., T, V)", tuple(student_logits.shape), "Leave shift=False.")
    checks.check_process_group("process_group", process_group)
    scales = checks.check_per_side("logit_scale", logit_scale, default=1.0)
    caps = checks.check_per_side("logit_softcap", logit_softcap, default=None)
    options = Options(
        checks.check_number("lambda_reason", lambda_reason, at_least=0.0),
        checks.check_number("lambda_act", lambda_act, at_least=0.0),
        reduction,
        bool(shift),
        bool(return_stats),
        backend,
        "" if process_group is None else vocab_parallel.register(process_group),
        checks.check_vocab_size(vocab_size, student_logits, teacher_logits),
        checks.check_number("temperature", temperature, above=0.0),
        divergence,
        checks.check_beta(beta),
        *scales,
        *caps,
    )
    normalizer = checks.check_normalizer(normalizer, reduction, student_logits.device)
    if inplace_backward and torch.is_grad_enabled() and student_logits.requires_grad:
        checks.check_writable(student_logits)
    loss, sums, counts = _by_way(student_logits, teacher_logits, span_ids, normalizer, options, inplace_backward)
    return (loss, span_stats(sums, counts)) if return_stats else loss


def _by_way(
    student: Tensor, teacher: Tensor, span_ids: Tensor, normalizer: Tensor | None, options: Options, inplace_backward: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, sums (2, 4) and counts (2,), by the way to the gradient that fits (see `span_kl_library`)."""
    needs_grad = torch.is_grad_enabled() and student.requires_grad
    if needs_grad and options.reduction != "none" and not options.group:
        if student.dtype != torch.float16:
            return OnePass.apply(student, teacher, span_ids, normalizer, options, inplace_backward)
        if student.device.type == "cpu" and not inplace_backward:
            return OnePassIfExpected.apply(student, teacher, span_ids, normalizer, options)
    return torch.ops.sad.span_kl(student, teacher, span_ids, normalizer, *options, inplace_backward)[:3]
