"""The span KL from hidden states: the public function, which checks its arguments once."""

from __future__ import annotations

import torch
from torch import Tensor

from sadkernels import backends, checks
from sadkernels.comparison import DIVERGENCES
from sadkernels.ops.linear_span_kl_library import Inputs, linear_span_kl_op
from sadkernels.ops.options import Options
from sadkernels.ops.row_weights import REDUCTIONS
from sadkernels.stats import SpanStats, span_stats

CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 256 << 20}  # enough rows for matrix products near their full speed


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
    student = _head("student", student_hidden, student_weight, student_bias)
    teacher = _head("teacher", teacher_hidden, teacher_weight, teacher_bias)
    lead, device = student_hidden.shape[:-1], student_hidden.device
    if not lead:
        checks.fail(
            "student_hidden", "shape (..., H) with at least one dimension of tokens", tuple(student_hidden.shape), "Add it."
        )
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
        _check_rows(rows, device)
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
        _vocab_size(vocab_size, student_weight, teacher_weight),
        checks.check_number("temperature", temperature, above=0.0),
        divergence,
        checks.check_beta(beta),
        *scales,
        *caps,
    )
    normalizer = checks.check_normalizer(normalizer, reduction, device)
    chunk_bytes = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) if chunk_bytes is None else _chunk_bytes(chunk_bytes)
    inputs = Inputs(*student, *(None if x is None else x.detach() for x in teacher), span_ids, normalizer, rows)
    loss, sums, counts = linear_span_kl_op(inputs, options, chunk_bytes)
    return (loss, span_stats(sums, counts)) if return_stats else loss


def _head(side: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states, weight and bias of one side, checked, gathered and cast; the casts are differentiable."""
    names = {f"{side}_hidden": hidden, f"{side}_weight": weight} | ({} if bias is None else {f"{side}_bias": bias})
    weight, bias = _gathered(weight), _gathered(bias)
    checks.check_logits(f"{side}_hidden", hidden)
    for name, x in names.items():
        if not isinstance(x, Tensor):
            checks.fail(name, "a tensor", type(x).__name__, "Pass the head's parameter.", TypeError)
        if x.device != hidden.device:
            checks.fail(
                name, f"a tensor on {hidden.device}, like {side}_hidden", f"one on {x.device}", "Move it with `.to(...)`."
            )
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        expected = f"shape (V, {hidden.shape[-1]}), H that of {side}_hidden"
        checks.fail(f"{side}_weight", expected, tuple(weight.shape), "Pass the head's `.weight`, as nn.Linear stores it.")
    if bias is not None and bias.shape != weight.shape[:1]:
        checks.fail(f"{side}_bias", f"shape ({weight.shape[0]},)", tuple(bias.shape), "Pass the head's `.bias`.")
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        if hidden.dtype != torch.float64:
            hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    for name, x in ((f"{side}_weight", weight), (f"{side}_bias", bias)):
        if x is not None and x.dtype != hidden.dtype:
            got = f"{x.dtype} beside hidden states of {hidden.dtype}"
            checks.fail(
                name, f"the dtype of {side}_hidden", got, "Convert one of them, or run under torch.autocast.", TypeError
            )
    return hidden, weight, bias


def _gathered(x: Tensor | None) -> Tensor | None:
    """The whole of a tensor that is spread over processes; others as they are."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def _check_rows(rows: Tensor, device: torch.device) -> None:
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
        got = f"{rows.dtype} {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        checks.fail(
            "rows", "int64 of shape (M,)", got, "Flatten the mask of supervised rows: `.nonzero().squeeze(-1)`.", TypeError
        )
    if rows.device != device:
        checks.fail("rows", f"a tensor on {device}", f"one on {rows.device}", "Move it with `.to(...)`.")


def _vocab_size(vocab_size: int | None, student_weight: Tensor, teacher_weight: Tensor) -> int:
    """As for logits, whose columns are the rows of the weights."""
    return checks.check_vocab_size(vocab_size, student_weight.t(), teacher_weight.t())


def _chunk_bytes(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        checks.fail("chunk_bytes", "a whole number >= 1", repr(value), "A GPU with 24 GB has room for 256 << 20.")
    return value
