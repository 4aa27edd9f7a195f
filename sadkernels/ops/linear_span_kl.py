"""The span KL from hidden states: the public function, which checks its arguments once."""

from __future__ import annotations

from torch import Tensor

from sadkernels import backends, checks
from sadkernels.divergence import DIVERGENCES
from sadkernels.ops import linear_library
from sadkernels.ops.linear_arguments import check_chunk_bytes, check_head, check_rows, check_tokens
from sadkernels.ops.linear_span_kl_library import NAME, Inputs
from sadkernels.ops.options import Options
from sadkernels.ops.row_weights import REDUCTIONS
from sadkernels.stats import SpanStats, span_stats


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
    temperature: float = 1.0,
    reduction: str = "mean",
    normalizer: float | tuple[float, float] | Tensor | None = None,
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

    logits = hidden weight^T + bias on both sides. Supervised rows alone are gathered and projected, chunk by chunk; the
    logits of a chunk become their gradient in place and are multiplied back at once, so neither head is computed twice. Time
    is proportional to the number of supervised rows; memory beyond inputs and gradients is `chunk_bytes`, whatever N is.

    Args:
        student_hidden: (..., H_s), what the student's head takes; receives a gradient.
        student_weight: (V_s, H_s), the head's; receives a gradient if it requires one (a frozen head costs none). Same
            dtype as the hidden states; under autocast both are cast to its dtype. A DTensor is gathered once.
        teacher_hidden: (..., H_t), must not require grad. H_t, dtype and V_t may differ from the student's.
        teacher_weight: (V_t, H_t), gets no gradient.
        span_ids: (...,), as in `sad.fused_span_kl`, likewise all arguments that are not described here.
        student_bias: (V_s,) or None; receives a gradient if it requires one.
        teacher_bias: (V_t,) or None.
        rows: (M,) int64, numbers of the rows of the flattened (...,) that are projected. Must hold every supervised row, in
            any order, once (with `shift`, every row whose next token is supervised); others cost time and change
            nothing. Without it the rows are looked for, which waits for the device.
        chunk_bytes: Room for the logits of both sides; at least one row is taken. Default: 128 MiB on a CPU, 256 MiB
            on a GPU. The loss does not depend on it, gradients of the weight do in the last digit.

    Returns:
        As `sad.fused_span_kl`. Gradients have the dtypes of their inputs; those of the weight and the bias are summed in
        float32 (a chunk's bfloat16 product is rounded once on a CPU, whose libraries give no wider one).

    Raises:
        ValueError: A shape, device, number or name is not usable; the message names the argument and the remedy.
        TypeError: An argument is of the wrong type or dtype.
        sadkernels.backends.BackendUnavailableError: The backend named cannot run these tensors here.

    Example:
        >>> hidden = student.model(x).last_hidden_state
        >>> loss = sad.fused_linear_span_kl(hidden, student.lm_head.weight, t_hidden, t_weight, span_ids, shift=True)
    """
    student = check_head("student", student_hidden, student_weight, student_bias)
    teacher = check_head("teacher", teacher_hidden, teacher_weight, teacher_bias)
    lead, device = check_tokens(student_hidden)
    if teacher_hidden.shape[:-1] != lead:
        got = f"{tuple(teacher_hidden.shape)} against {tuple(student_hidden.shape)}"
        checks.fail("teacher_hidden", "the student's shape except for H", got, "Run both models on the same tokens.")
    if teacher_hidden.device != device:
        got = f"{teacher_hidden.device} against {device}"
        checks.fail("teacher_hidden", "the student's device", got, "Move one of them with `.to(...)`.")
    if teacher_hidden.requires_grad:
        checks.fail("teacher_hidden", "a tensor without grad", "one that requires grad", "Pass `teacher_hidden.detach()`.")
    checks.check_span_ids("span_ids", span_ids, lead, device, "student_hidden")
    checks.check_choice("reduction", reduction, REDUCTIONS)
    checks.check_choice("divergence", divergence, DIVERGENCES)
    checks.check_choice("backend", backend, ("auto", *backends.PACKAGES))
    if rows is not None:
        check_rows(rows, device)
    scales = checks.check_per_side("logit_scale", logit_scale, default=1.0)
    caps = checks.check_per_side("logit_softcap", logit_softcap, default=None)
    options = Options(
        checks.check_number("lambda_reason", lambda_reason, at_least=0.0),
        checks.check_number("lambda_act", lambda_act, at_least=0.0),
        reduction,
        bool(shift),
        bool(return_stats),
        backend,
        "",
        checks.check_vocab_size(vocab_size, student_weight.t(), teacher_weight.t()),  # their rows are the logits' columns
        checks.check_number("temperature", temperature, above=0.0),
        divergence,
        checks.check_beta(beta),
        *scales,
        *caps,
    )
    normalizer = checks.check_normalizer(normalizer, reduction, device)
    chunk_bytes = check_chunk_bytes(chunk_bytes, device)
    inputs = Inputs(*student, *(None if x is None else x.detach() for x in teacher), span_ids, normalizer, rows)
    loss, sums, counts = linear_library.apply(NAME, inputs, options, chunk_bytes)
    return (loss, span_stats(sums, counts)) if return_stats else loss
