"""The span KL from hidden states: its op, and the public function, which validates its arguments once."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from sadkernels.divergence import DivergenceConfig
from sadkernels.ops import validate
from sadkernels.ops.autograd import apply, register
from sadkernels.ops.chunked import ChunkedOp, new_chunk_logits
from sadkernels.ops.head import Head
from sadkernels.ops.row_weights import LossOptions
from sadkernels.ops.validate_tokens import check_row_numbers, check_tokens
from sadkernels.spans import SpanStats, span_stats
from sadkernels.tokens import Tokens


class Inputs(NamedTuple):
    """The tensors of the op."""

    student_hidden: Tensor  # (..., H_s)
    student_weight: Tensor  # (V_s, H_s)
    student_bias: Tensor | None  # (V_s,)
    teacher_hidden: Tensor  # (..., H_t)
    teacher_weight: Tensor  # (V_t, H_t)
    teacher_bias: Tensor | None  # (V_t,)
    tokens: Tokens
    rows: Tensor | None  # (M,), the rows to project


class Options(NamedTuple):
    """All other arguments of the op."""

    loss: LossOptions
    config: DivergenceConfig
    chunk_bytes: int | None


class TeacherLogits:
    """A `chunked.Target`: the teacher's logits, projected like the student's.

    Args:
        kernel: The backend's functions.
        head: The teacher's hidden states and head.
    """

    def __init__(self, kernel: ModuleType, head: Head) -> None:
        self._kernel, self._head = kernel, head
        self._buffer: Tensor | None = None
        self.row_bytes = head.weight.shape[0] * head.logits_dtype.itemsize

    def for_rows(self, rows: Tensor, place: slice) -> Tensor:
        """(n, V), the logits of these rows."""
        if self._buffer is None:  # the first chunk is the largest
            like = self._head.hidden.new_empty(0, dtype=self._head.logits_dtype)
            self._buffer = new_chunk_logits(self._kernel, len(rows), self._head.weight.shape[0], like)
        logits = self._buffer[: len(rows)]
        self._head.project(self._head.hidden.index_select(0, rows), logits)
        return logits


class LinearSpanKL(ChunkedOp):
    """The divergence from the teacher's hidden states."""

    def floating(self, x: Inputs) -> tuple[Tensor, Tensor]:
        return x.student_hidden, x.teacher_hidden

    def target(self, x: Inputs, o: Options) -> TeacherLogits:
        head = Head(x.teacher_hidden.flatten(0, -2), x.teacher_weight, x.teacher_bias)
        return TeacherLogits(self.kernel(o), head.columns(o.config.vocab_size))


OP = register(LinearSpanKL("linear_span_kl", "span_kl", Inputs, Options, state_rows=5))


def fused_linear_span_kl(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    span_ids: Tensor,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
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
    divergence: str = "forward_kl",
    beta: float = 0.5,
    logit_scale: float | tuple[float, float] | None = None,
    logit_softcap: float | tuple[float | None, float | None] | None = None,
    rows: Tensor | None = None,
    chunk_bytes: int | None = None,
    return_stats: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, SpanStats]:
    r"""`sad.fused_span_kl` from the last hidden states and the two language-model heads, without N x V logits.

    On both sides logits = hidden weight^T + bias. Only supervised rows are gathered and projected, one chunk at a time. The
    gradient of a chunk's logits overwrites them and is multiplied back at once, so no head is computed twice. Time is
    proportional to the number of supervised rows. Memory beyond inputs and gradients is `chunk_bytes` for any N.

    Args:
        student_hidden: (..., H_s), the input of the student's head; receives a gradient.
        student_weight: (V_s, H_s), the head's weight; receives a gradient if it requires one (a frozen head costs nothing).
            Same dtype as the hidden states; under autocast both are cast to its dtype. A DTensor is gathered once;
            one that is sharded must not require a gradient (see docs/losses.md).
        teacher_hidden: (..., H_t), must not require grad. H_t, dtype and V_t may differ from the student's.
        teacher_weight: (V_t, H_t), receives no gradient.
        span_ids: (...,), as in `sad.fused_span_kl`; so are all arguments that are not described here.
        student_bias: (V_s,) or None; receives a gradient if it requires one.
        teacher_bias: (V_t,) or None.
        rows: (M,) int64, the numbers of the rows of the flattened (...,) to project. Must contain each supervised row once,
            in any order (with `shift`, each row whose next token is supervised). Other rows cost time and change nothing.
            Pass it to avoid a device synchronization. Values are checked on a CPU only: on a GPU a missing or repeated
            supervised row gives a wrong loss, and a number out of range an error of the device.
        chunk_bytes: Memory for the logits of both sides; at least one row is projected. Default: 128 MiB on a CPU; on a GPU
            that of 2048 rows, at most 1/16 of its memory. The loss does not depend on it; the gradient of the weight does in
            the last digit.

    Returns:
        As `sad.fused_span_kl`. Gradients have the dtypes of their inputs. For 16-bit inputs the logits are float32, and the
        gradients of weight and bias are summed in float32.

    Raises:
        ValueError: A shape, device, number or name is invalid; the message names the argument and the remedy.
        TypeError: An argument has the wrong type or dtype.
        NotImplementedError: As in `sad.fused_span_kl`.
        sadkernels.backends.BackendUnavailableError: The backend was requested by name and cannot run here.

    Example:
        >>> hidden = student.model(x).last_hidden_state
        >>> loss = sad.fused_linear_span_kl(hidden, student.lm_head.weight, t_hidden, t_weight, span_ids, shift=True)
    """
    student = validate.check_head("student", student_hidden, student_weight, student_bias)
    teacher = validate.check_head("teacher", teacher_hidden, teacher_weight, teacher_bias)
    validate.check_teacher("teacher_hidden", teacher_hidden, student_hidden, "H")
    device = student_hidden.device
    if rows is not None:
        validate.check_rows(rows, device)
    options = Options(
        validate.loss_options(
            "span_kl",
            (student[0], teacher[0]),
            lambda_reason=lambda_reason,
            lambda_act=lambda_act,
            lambda_observe=lambda_observe,
            reduction=reduction,
            shift=shift,
            return_stats=return_stats,
            backend=backend,
        ),
        validate.divergence_config(
            student_weight.shape[0],
            teacher_weight.shape[0],
            vocab_size=vocab_size,
            temperature=temperature,
            divergence=divergence,
            beta=beta,
            logit_scale=logit_scale,
            logit_softcap=logit_softcap,
        ),
        validate.check_chunk_bytes(chunk_bytes),
    )
    of_tokens = {"token_weights": token_weights, "turn_ids": turn_ids, "normalizer": normalizer}
    tokens = check_tokens(student_hidden, "student_hidden", options.loss, span_ids=span_ids, **of_tokens)
    check_row_numbers(rows, tokens, options.loss)
    inputs = Inputs(*student, *(None if x is None else x.detach() for x in teacher), tokens, rows)
    loss, sums, counts = apply(OP, inputs, options)
    return (loss, span_stats(sums, counts)) if return_stats else loss
