"""The span KL against a teacher's top-k log-probabilities, and the span cross-entropy: one op, two public functions."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from sadkernels.divergence import DivergenceConfig
from sadkernels.ops import validate
from sadkernels.ops.autograd import apply, register
from sadkernels.ops.row_weights import LossOptions
from sadkernels.ops.span_kl import LogitsOp
from sadkernels.ops.validate_tokens import check_log_probabilities, check_tokens
from sadkernels.spans import SpanStats, span_stats
from sadkernels.tokens import Tokens
from sadkernels.topk import TAILS, TopkTarget, row_labels, topk_target


class Inputs(NamedTuple):
    """The tensors of the op; without `logprobs` and `ids` the loss is the cross-entropy alone."""

    student: Tensor  # (..., V)
    logprobs: Tensor | None  # (..., k)
    ids: Tensor | None  # (..., k)
    target_ids: Tensor | None  # (...,)
    tokens: Tokens


class Options(NamedTuple):
    """All other arguments of the op."""

    loss: LossOptions
    config: DivergenceConfig
    tail: str
    alpha: float


class TopkSpanKL(LogitsOp):
    """The divergence from the teacher's top-k columns, mixed with the cross-entropy."""

    def floating(self, x: Inputs) -> tuple[Tensor, ...]:
        return (x.student,) if x.logprobs is None else (x.student, x.logprobs)

    def target(self, x: Inputs, o: Options) -> TopkTarget:
        labels = None if x.target_ids is None else row_labels(x.target_ids, o.config.vocab_size, o.loss.shift)
        config = {"vocab_size": o.config.vocab_size, "tail": o.tail, "alpha": o.alpha, "dtype": self.loss_dtype(x)}
        return topk_target(x.logprobs, x.ids, labels, **config)


OP = register(TopkSpanKL("topk_span_kl", "topk_span_kl", Inputs, Options, state_rows=4))


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
    lambda_observe: float = 0.0,
    token_weights: Tensor | None = None,
    turn_ids: Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    normalizer: float | tuple[float, ...] | Tensor | None = None,
    shift: bool = False,
    vocab_size: int | None = None,
    logit_scale: float | None = None,
    logit_softcap: float | None = None,
    inplace_backward: bool = False,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, SpanStats]:
    r"""The span KL (eqs. 4 to 6) against a teacher of which k log-probabilities per token are known.

    With q = softmax(student_logits / temperature), p_i = exp(teacher_logprobs_i) and the tail = all other columns:

        bucket   sum_i p_i log(p_i / q_i) + p_tail log(p_tail / q_tail),   p_tail = 1 - sum_i p_i,  q_tail = sum_tail q_j
        ignore   sum_i p_i log(p_i / q_i) with p renormalized over the k columns

    Both are never negative. "bucket" is a lower bound of the KL against the whole teacher (data-processing inequality) and
    equals it if k = V. It does not depend on how the student distributes its mass within the tail. "ignore" moves the
    student's mass out of the tail.

    Args:
        student_logits: (..., V), float32, bfloat16 or float16 (float64 on `reference`), any strides with a unit stride on V.
            Receives the gradient, in its dtype.
        teacher_logprobs: (..., k), log-probabilities of the teacher's whole softmax, in any of these dtypes, in any order.
            Must not require grad. Values > 0, such as probabilities, are refused on a CPU; on a GPU they are not checked.
        teacher_ids: (..., k), their columns, any integer dtype. An id outside 0 .. V - 1 (such as -1 for padding) is absent:
            its log-probability is ignored and its mass is part of the tail. If an id is repeated in a row, its first entry
            counts. A row without columns adds 0.
        span_ids: (...,), as in `fused_span_kl`.
        tail: "bucket" or "ignore".
        target_ids: (...,), any integer dtype: the tokens of the trajectory, for a loss of alpha KL + (1 - alpha) CE from one
            pass. With `shift` row t takes the target of token t + 1. An id outside 0 .. V - 1 adds no CE.
        alpha: The share of the KL, 0 to 1; less than 1 needs `target_ids`.
        lambda_reason: As in `fused_span_kl`; so are the other lambdas, `token_weights`, `turn_ids`, `reduction`,
            `normalizer`, `shift`, `inplace_backward`, `return_stats` and `backend`.
        temperature: T > 0, divides the student's logits only. The teacher's log-probabilities must be those of a softmax at
            this T: k numbers do not determine the softmax at another T.
        vocab_size: The student's softmax runs over the first `vocab_size` columns; the gradient of the others is 0.
        logit_scale: Multiplies the student's logits before anything else (> 0).
        logit_softcap: Replaces the student's scaled logits x by cap tanh(x / cap) (cap > 0).

    Returns:
        The loss, a float32 scalar (float64 if an input is float64); with `return_stats` a pair (loss, `SpanStats`). There
        `kl_sum` sums the losses of the tokens (mixed by alpha), `teacher_entropy_sum` is the entropy of the k + 1 outcomes
        (a lower bound of the teacher's), and `agreements` compares the student's argmax with the teacher's best column.
        The loss is +inf if the student's logit is -inf and the teacher's log-probability is not; the gradient stays finite.
        The loss is NaN if a supervised row has a NaN.

    Raises:
        ValueError: A shape, device, number or name is invalid; the message names the argument and the remedy.
        TypeError: An argument has the wrong type or dtype.
        NotImplementedError: As in `fused_span_kl`.
        sadkernels.backends.BackendUnavailableError: The backend was requested by name and cannot run here.

    Example:
        >>> logprobs, ids = teacher_logits.log_softmax(-1).topk(64)
        >>> loss = sad.fused_topk_span_kl(student(x).logits, logprobs, ids, span_ids, shift=True)
    """
    validate.check_logits("student_logits", student_logits)
    lead, device = student_logits.shape[:-1], student_logits.device
    validate.check_topk(teacher_logprobs, teacher_ids, lead, device, "the student's shape except for k")
    validate.check_choice("tail", tail, TAILS)
    return _loss(
        student_logits,
        teacher_logprobs,
        teacher_ids,
        target_ids,
        tail=tail,
        alpha=validate.check_mixture(alpha, target_ids, student_logits, "student_logits"),
        lambda_reason=lambda_reason,
        lambda_act=lambda_act,
        lambda_observe=lambda_observe,
        temperature=temperature,
        reduction=reduction,
        shift=shift,
        vocab_size=vocab_size,
        logit_scale=logit_scale,
        logit_softcap=logit_softcap,
        inplace_backward=inplace_backward,
        return_stats=return_stats,
        backend=backend,
        span_ids=span_ids,
        token_weights=token_weights,
        turn_ids=turn_ids,
        normalizer=normalizer,
    )


def fused_span_ce(
    student_logits: Tensor,
    target_ids: Tensor,
    span_ids: Tensor,
    *,
    lambda_reason: float = 1.0,
    lambda_act: float = 1.0,
    lambda_observe: float = 0.0,
    token_weights: Tensor | None = None,
    turn_ids: Tensor | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    normalizer: float | tuple[float, ...] | Tensor | None = None,
    shift: bool = False,
    vocab_size: int | None = None,
    logit_scale: float | None = None,
    logit_softcap: float | None = None,
    inplace_backward: bool = False,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, SpanStats]:
    r"""Cross-entropy on the reasoning tokens and the action tokens (eq. 13); no buffer except the gradient.

        L = lambda_r sum_t m_r(t) CE(x_t) + lambda_a sum_t m_a(t) CE(x_t),   CE = -log softmax(logits / temperature)[target]

    Args:
        student_logits: (..., V), as in `fused_span_kl`; receives the gradient.
        target_ids: (...,), any integer dtype: the right column of each row. An id outside 0 .. V - 1, such as -100, adds 0
            to the sum and to the gradient; its row still counts in "mean" if it has a span.
        span_ids: (...,), as in `fused_span_kl`.
        lambda_reason: As in `fused_span_kl`; so are the other lambdas, `token_weights`, `turn_ids`, `reduction`,
            `normalizer`, `inplace_backward` and `backend`.
        temperature: T > 0, divides the logits.
        shift: For logits (..., T, V) of a causal model and `target_ids` as the model received them: row t takes the target
            and the span id of token t + 1.
        vocab_size: As in `fused_topk_span_kl`; so are `logit_scale` and `logit_softcap`.
        return_stats: Also return `SpanStats`: `kl_sum` sums the cross-entropies, `teacher_entropy_sum` is 0, and
            `agreements` counts the tokens whose target is the student's argmax.

    Returns:
        The loss, a float32 scalar (float64 for float64 logits); with `return_stats` a pair (loss, `SpanStats`).

    Raises:
        ValueError, TypeError, NotImplementedError, sadkernels.backends.BackendUnavailableError: As in `fused_span_kl`.

    Example:
        >>> loss = sad.fused_span_ce(student(input_ids).logits, input_ids, span_ids, shift=True)
    """
    validate.check_logits("student_logits", student_logits)
    validate.check_target_ids(target_ids, student_logits, "student_logits")
    return _loss(
        student_logits,
        None,
        None,
        target_ids,
        tail="ignore",
        alpha=0.0,
        lambda_reason=lambda_reason,
        lambda_act=lambda_act,
        lambda_observe=lambda_observe,
        temperature=temperature,
        reduction=reduction,
        shift=shift,
        vocab_size=vocab_size,
        logit_scale=logit_scale,
        logit_softcap=logit_softcap,
        inplace_backward=inplace_backward,
        return_stats=return_stats,
        backend=backend,
        span_ids=span_ids,
        token_weights=token_weights,
        turn_ids=turn_ids,
        normalizer=normalizer,
    )


def _loss(
    student_logits: Tensor,
    logprobs: Tensor | None,
    ids: Tensor | None,
    target_ids: Tensor | None,
    *,
    tail: str,
    alpha: float,
    temperature: float,
    vocab_size: int | None,
    logit_scale: float | None,
    logit_softcap: float | None,
    span_ids: Tensor,
    token_weights: Tensor | None,
    turn_ids: Tensor | None,
    normalizer: float | tuple[float, ...] | Tensor | None,
    **loss_options: Any,
) -> Tensor | tuple[Tensor, SpanStats]:
    """Validates the arguments that both losses have, and computes the loss."""
    student = {"temperature": temperature, "vocab_size": vocab_size, "logit_scale": logit_scale}
    floating = (student_logits,) if logprobs is None else (student_logits, logprobs)
    options = Options(
        validate.loss_options("topk_span_kl", floating, **loss_options),
        validate.student_config(student_logits.shape[-1], logit_softcap=logit_softcap, **student),
        tail,
        alpha,
    )
    of_tokens = {"token_weights": token_weights, "turn_ids": turn_ids, "normalizer": normalizer}
    tokens = check_tokens(student_logits, "student_logits", options.loss, span_ids=span_ids, **of_tokens)
    if logprobs is not None:
        check_log_probabilities(logprobs, ids, None, tokens, options.loss, options.config.vocab_size)
    # `span_ids` may be the same tensor as `target_ids`; torch.compile does not trace an op with the same input twice.
    targets = target_ids.detach() if alpha < 1.0 else None
    inputs = Inputs(student_logits, logprobs, ids, targets, tokens)
    loss, sums, counts = apply(OP, inputs, options)
    return (loss, span_stats(sums, counts)) if options.loss.stats else loss
