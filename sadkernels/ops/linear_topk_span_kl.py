"""The top-k span KL from hidden states: its op, and the public function, which validates its arguments once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig
from sadkernels.ops import validate
from sadkernels.ops.autograd import apply, register
from sadkernels.ops.chunked import ChunkedOp
from sadkernels.ops.row_weights import LossOptions
from sadkernels.ops.validate_tokens import check_log_probabilities, check_row_numbers, check_tokens
from sadkernels.spans import SpanStats, span_stats
from sadkernels.tokens import Tokens
from sadkernels.topk import TAILS, TopkTarget, row_labels, topk_target

_ENTRY_BYTES = 48  # per column of a row while it is sorted: columns, order and log-probabilities of 8 bytes each, and copies


class Inputs(NamedTuple):
    """The tensors of the op."""

    student_hidden: Tensor  # (..., H)
    student_weight: Tensor  # (V, H)
    student_bias: Tensor | None  # (V,)
    logprobs: Tensor  # (..., k), or (M, k) with `rows`
    ids: Tensor  # as `logprobs`
    target_ids: Tensor | None  # (...,)
    tokens: Tokens
    rows: Tensor | None  # (M,), the rows to project


class Options(NamedTuple):
    """All other arguments of the op."""

    loss: LossOptions
    config: DivergenceConfig
    tail: str
    alpha: float
    chunk_bytes: int | None


class TopkRows:
    """A `chunked.Target`: the top-k columns and the label of each row."""

    def __init__(self, x: Inputs, o: Options, dtype: torch.dtype) -> None:
        k = x.ids.shape[-1]
        self.row_bytes = k * _ENTRY_BYTES
        self._logprobs, self._ids, self._by_place = x.logprobs.reshape(-1, k), x.ids.reshape(-1, k), x.rows is not None
        self._labels = None if x.target_ids is None else row_labels(x.target_ids, o.config.vocab_size, o.loss.shift)
        self._config = {"vocab_size": o.config.vocab_size, "tail": o.tail, "alpha": o.alpha, "dtype": dtype}

    def for_rows(self, rows: Tensor, place: slice) -> TopkTarget:
        """The targets of these rows."""
        at = place if self._by_place else rows
        labels = None if self._labels is None else self._labels[rows]
        return topk_target(self._logprobs[at], self._ids[at], labels, **self._config)


class LinearTopkSpanKL(ChunkedOp):
    """The divergence from the teacher's top-k columns, mixed with the cross-entropy."""

    def floating(self, x: Inputs) -> tuple[Tensor, Tensor]:
        return x.student_hidden, x.logprobs

    def target(self, x: Inputs, o: Options) -> TopkRows:
        return TopkRows(x, o, self.loss_dtype(x))


OP = register(LinearTopkSpanKL("linear_topk_span_kl", "topk_span_kl", Inputs, Options, state_rows=4))


def fused_linear_topk_span_kl(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_logprobs: Tensor,
    teacher_ids: Tensor,
    span_ids: Tensor,
    *,
    student_bias: Tensor | None = None,
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
    rows: Tensor | None = None,
    chunk_bytes: int | None = None,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, SpanStats]:
    r"""`sad.fused_topk_span_kl` from the student's last hidden states and its language-model head, without N x V logits.

    student_logits = student_hidden student_weight^T + student_bias, of supervised rows only and one chunk of them at a time,
    as in `sad.fused_linear_span_kl`.

    Args:
        student_hidden: (..., H), the input of the student's head; receives a gradient.
        student_weight: (V, H), the head's weight; receives a gradient if it requires one (a frozen head costs nothing). Same
            dtype as the hidden states; under autocast both are cast to its dtype. A DTensor is gathered once;
            one that is sharded must not require a gradient (see docs/losses.md).
        teacher_logprobs: (..., k) as in `sad.fused_topk_span_kl`. With `rows` it is (M, k): entry i belongs to row rows[i],
            so rows without a span need no entry.
        teacher_ids: Of the shape of `teacher_logprobs`.
        span_ids: (...,), as in `sad.fused_span_kl`.
        student_bias: (V,) or None; receives a gradient if it requires one.
        tail: As in `sad.fused_topk_span_kl`; so are `alpha`, the lambdas, `temperature`, `reduction`, `normalizer`, `shift`,
            `vocab_size`, `logit_scale`, `logit_softcap`, `return_stats` and `backend`.
        target_ids: (...,), of all rows, also with `rows`.
        rows: (M,) int64, the numbers of the rows of the flattened (...,) to project. Must contain each supervised row once,
            in any order (with `shift`, each row whose next token is supervised: the logits of row t predict token t + 1, and
            its entry is the teacher's prediction of that token). Other rows cost time and change nothing. Pass it to avoid
            a device synchronization. Values are checked on a CPU only: on a GPU a missing or repeated supervised row gives a
            wrong loss, and a number out of range an error of the device.
        chunk_bytes: Memory for the student's logits and the targets; at least one row is projected. Default: as in
            `sad.fused_linear_span_kl`.

    Returns:
        As `sad.fused_topk_span_kl`. Gradients have the dtypes of their inputs. For 16-bit inputs the logits are float32, and
        the gradients of weight and bias are summed in float32.

    Raises:
        ValueError: A shape, device, number or name is invalid; the message names the argument and the remedy.
        TypeError: An argument has the wrong type or dtype.
        NotImplementedError: As in `sad.fused_span_kl`.
        sadkernels.backends.BackendUnavailableError: The backend was requested by name and cannot run here.

    Example:
        >>> hidden = student.model(x).last_hidden_state
        >>> loss = sad.fused_linear_topk_span_kl(hidden, student.lm_head.weight, logprobs, ids, span_ids, shift=True)
    """
    student = validate.check_head("student", student_hidden, student_weight, student_bias)
    device = student_hidden.device
    if rows is None:
        shape, expected = student_hidden.shape[:-1], "the student's shape except for k"
    else:
        validate.check_rows(rows, device)
        shape, expected = rows.shape, "shape (M, k), k entries for each of `rows`"
    validate.check_topk(teacher_logprobs, teacher_ids, shape, device, expected)
    alpha = validate.check_mixture(alpha, target_ids, student_hidden, "student_hidden")
    validate.check_choice("tail", tail, TAILS)
    options = Options(
        validate.loss_options(
            "topk_span_kl",
            (student[0], teacher_logprobs),
            lambda_reason=lambda_reason,
            lambda_act=lambda_act,
            lambda_observe=lambda_observe,
            reduction=reduction,
            shift=shift,
            return_stats=return_stats,
            backend=backend,
        ),
        validate.student_config(
            student_weight.shape[0],
            vocab_size=vocab_size,
            temperature=temperature,
            logit_scale=logit_scale,
            logit_softcap=logit_softcap,
        ),
        tail,
        alpha,
        validate.check_chunk_bytes(chunk_bytes),
    )
    of_tokens = {"token_weights": token_weights, "turn_ids": turn_ids, "normalizer": normalizer}
    tokens = check_tokens(student_hidden, "student_hidden", options.loss, span_ids=span_ids, **of_tokens)
    check_row_numbers(rows, tokens, options.loss)
    check_log_probabilities(teacher_logprobs, teacher_ids, rows, tokens, options.loss, options.config.vocab_size)
    # `span_ids` may be the same tensor as `target_ids`; torch.compile does not trace an op with the same input twice.
    targets = (teacher_logprobs, teacher_ids, target_ids.detach() if alpha < 1.0 else None)
    loss, sums, counts = apply(OP, Inputs(*student, *targets, tokens, rows), options)
    return (loss, span_stats(sums, counts)) if return_stats else loss
