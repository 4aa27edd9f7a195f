"""The KL to a teacher's likeliest columns from hidden states: the public function, which checks its arguments once."""

from __future__ import annotations

from torch import Tensor

from sadkernels import checks
from sadkernels.ops import linear_library
from sadkernels.ops.linear_arguments import check_chunk_bytes, check_head, check_rows, check_tokens
from sadkernels.ops.linear_topk_span_kl_library import NAME, Inputs
from sadkernels.ops.topk_arguments import check_list, check_mixture, check_options
from sadkernels.stats import SpanStats, span_stats


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
    temperature: float = 1.0,
    reduction: str = "mean",
    normalizer: float | tuple[float, float] | Tensor | None = None,
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

    student_logits = student_hidden student_weight^T + student_bias, of supervised rows alone and a chunk of them at a time,
    as in `sad.fused_linear_span_kl`.

    Args:
        student_hidden: (..., H), what the student's head takes; receives a gradient.
        student_weight: (V, H), the head's; receives a gradient if it requires one (a frozen head costs none). Same dtype as
            the hidden states; under autocast both are cast to its dtype. A DTensor is gathered once.
        teacher_logprobs: (..., k) as in `sad.fused_topk_span_kl`. With `rows` it is (M, k): entry i belongs to row rows[i],
            so that nobody need keep lists of rows without a span.
        teacher_ids: Of the shape of `teacher_logprobs`.
        span_ids: (...,), as in `sad.fused_span_kl`.
        student_bias: (V,) or None; receives a gradient if it requires one.
        tail: As in `sad.fused_topk_span_kl`, likewise `alpha`, the lambdas, `temperature`, `reduction`, `normalizer`,
            `shift`, `vocab_size`, `logit_scale`, `logit_softcap`, `return_stats` and `backend`.
        target_ids: (...,) of all rows, also with `rows`.
        rows: (M,) int64, numbers of the rows of the flattened (...,) that are projected. Must hold every supervised row, in
            any order, once (with `shift`, every row whose next token is supervised: row t is the one whose logits predict
            token t + 1, and its list is the teacher's prediction of that token); others cost time and change nothing.
            Without it the rows are looked for, which waits for the device.
        chunk_bytes: Room for the student's logits and the lists; at least one row is taken. Default: 128 MiB on a CPU,
            256 MiB on a GPU.

    Returns:
        As `sad.fused_topk_span_kl`. Gradients have the dtypes of their inputs; those of the weight and the bias are summed
        in float32 (a chunk's bfloat16 product is rounded once on a CPU, whose libraries give no wider one).

    Raises:
        ValueError: A shape, device, number or name is not usable; the message names the argument and the remedy.
        TypeError: An argument is of the wrong type or dtype.
        sadkernels.backends.BackendUnavailableError: The backend named cannot run these tensors here.

    Example:
        >>> hidden = student.model(x).last_hidden_state
        >>> loss = sad.fused_linear_topk_span_kl(hidden, student.lm_head.weight, logprobs, ids, span_ids, shift=True)
    """
    student = check_head("student", student_hidden, student_weight, student_bias)
    lead, device = check_tokens(student_hidden)
    if rows is None:
        check_list(teacher_logprobs, teacher_ids, lead, device, "the student's shape except for k")
    else:
        check_rows(rows, device)
        check_list(teacher_logprobs, teacher_ids, rows.shape, device, "shape (M, k), a list for each of `rows`")
    alpha = check_mixture(alpha, target_ids, lead, device, "student_hidden without H")
    checks.check_span_ids("span_ids", span_ids, lead, device, "student_hidden")
    options = check_options(
        student_weight.t(),  # its rows are the logits' columns
        tail=tail,
        alpha=alpha,
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
    normalizer = checks.check_normalizer(normalizer, reduction, device)
    targets = (teacher_logprobs, teacher_ids, target_ids if alpha < 1.0 else None)
    inputs = Inputs(*student, *targets, span_ids, normalizer, rows)
    loss, sums, counts = linear_library.apply(NAME, inputs, options, check_chunk_bytes(chunk_bytes, device))
    return (loss, span_stats(sums, counts)) if return_stats else loss
