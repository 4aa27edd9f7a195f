"""Validation of the arguments about tokens: span ids, weights, turns, normalizer, and the rows of a linear loss.

Values are checked on a CPU only; on a GPU that would synchronize with the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sadkernels.ops.row_weights import LossOptions, row_weights
from sadkernels.ops.validate import check_integers, check_number, fail, is_readable
from sadkernels.tokens import Tokens

_FLOAT32 = torch.finfo(torch.float32)
_NORMALIZERS = {  # what the normalizer of a reduction is
    "mean": "the number of supervised tokens (with `token_weights`, their sum) of all batches and ranks",
    "turn_mean": "the number of turns with a supervised token of all batches and ranks",
    "span_mean": "one number of tokens (with `token_weights`, their sum) per kind",
}


def check_tokens(
    student: Tensor,
    like: str,
    o: LossOptions,
    *,
    span_ids: Tensor,
    token_weights: Tensor | None,
    turn_ids: Tensor | None,
    normalizer: float | tuple[float, ...] | Tensor | None,
) -> Tokens:
    """The arguments about tokens, validated: one entry per row of `student` (..., V or H), which the caller calls `like`.

    Raises:
        ValueError, TypeError: An argument has a wrong type, dtype, shape, device or value.
    """
    shape, device, like = student.shape[:-1], student.device, f"{like} without its last dimension"
    remedy = "Pass one id per row; convert two masks with `sad.span_ids_from_masks`."
    check_integers("span_ids", span_ids, shape, device, like, remedy)
    if token_weights is not None:
        _check_token_weights(token_weights, shape, device, like)
    if turn_ids is not None:
        if o.reduction != "turn_mean":
            fail("turn_ids", f"None with reduction={o.reduction!r}", "a tensor", "Pass reduction='turn_mean' with it.")
        check_integers("turn_ids", turn_ids, shape, device, like, "Pass the number of the turn of each row.")
    tokens = Tokens(span_ids, token_weights, turn_ids, _normalizer(normalizer, o, device))
    _check_divisors(tokens, o)
    return tokens


def _check_token_weights(weights: Tensor, shape: torch.Size, device: torch.device, like: str) -> None:
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        fail("token_weights", "a floating-point tensor", got, "Convert it with `.float()`.", TypeError)
    if weights.shape != shape:
        fail("token_weights", f"shape {tuple(shape)}, that of {like}", tuple(weights.shape), "Pass one weight per row.")
    if weights.device != device:
        fail("token_weights", f"a tensor on {device}, like {like}", f"one on {weights.device}", "Move it with `.to(...)`.")
    if weights.requires_grad:
        remedy = "The loss has no gradient for the weights: pass `token_weights.detach()`."
        fail("token_weights", "a tensor without grad", "one that requires grad", remedy)
    if is_readable(weights):
        wrong = ~((weights >= 0.0) & (weights <= _FLOAT32.max))
        if wrong.any():
            remedy = "Leave tokens out with the weight 0."
            fail("token_weights", "finite numbers >= 0", weights[wrong][0].item(), remedy)


def _normalizer(normalizer: object, o: LossOptions, device: torch.device) -> Tensor | None:
    """The normalizer as a (3,) tensor on `device`, without a device synchronization."""
    if normalizer is None:
        return None
    if o.reduction not in _NORMALIZERS:
        remedy = "Use 'mean', 'span_mean' or 'turn_mean' with it."
        fail("normalizer", f"None with reduction={o.reduction!r}", "a value", remedy)
    counts, expected = (1,), "a number or 0-dim tensor"
    if o.reduction == "span_mean":
        counts, expected = (2, 3), "two numbers (reason, act), or three (and observe)"
        if o.lambda_observe > 0.0:
            counts, expected = (3,), "three numbers (reason, act, observe)"
    remedy = f"Pass {_NORMALIZERS[o.reduction]}."
    if isinstance(normalizer, Tensor):
        if normalizer.dtype == torch.bool or normalizer.is_complex():
            fail("normalizer", "an integer or floating-point dtype", normalizer.dtype, remedy, TypeError)
        if normalizer.numel() not in counts:
            fail("normalizer", expected, f"shape {tuple(normalizer.shape)}", remedy)
        if normalizer.device != device:
            fail("normalizer", f"a tensor on {device}", f"one on {normalizer.device}", "Move it there.")
        values = normalizer.detach().reshape(-1)
        if is_readable(values):
            for value in values.tolist():
                check_number("normalizer", value, at_least=0.0)
    else:
        numbers = normalizer if isinstance(normalizer, (tuple, list)) else (normalizer,)
        if len(numbers) not in counts:
            fail("normalizer", expected, repr(normalizer), remedy)
        numbers = [check_number("normalizer", x, at_least=0.0) for x in numbers]
        dtype = torch.float64  # counts stay exact; the division converts them to the loss's dtype
        values = torch.stack([torch.full((), x, dtype=dtype, device=device) for x in numbers])
    return torch.nn.functional.pad(values, (0, 1), value=1) if len(values) == 2 else values.expand(3)


def _check_divisors(tokens: Tokens, o: LossOptions) -> None:
    """Requires a normalizer that no supervised row divides by 0, or by so little that the row's weight overflows."""
    if tokens.normalizer is None or not all(is_readable(x) for x in tokens if x is not None):
        return
    largest = max(o.lambda_reason, o.lambda_act, o.lambda_observe)
    simple = tokens.token_weights is None and o.reduction != "turn_mean"
    if simple and all(largest < value * _FLOAT32.max for value in tokens.normalizer.tolist()):
        return
    if not row_weights(tokens, o, torch.float32).weights.isfinite().all():
        got, remedy = tokens.normalizer.unique().tolist(), f"Pass {_NORMALIZERS[o.reduction]}."
        fail("normalizer", "a count > 0 for the supervised tokens", got, remedy)


def check_row_numbers(rows: Tensor | None, tokens: Tokens, o: LossOptions) -> None:
    """Requires each row that the loss reads once in `rows`, and no number outside the batch."""
    if rows is None or not all(is_readable(x) for x in (rows, *tokens) if x is not None):
        return
    remedy = "Flatten the mask of supervised rows (with `shift`, that of the next tokens): `.nonzero().squeeze(-1)`."
    count = tokens.span_ids.numel()
    outside = (rows < 0) | (rows >= count)
    if outside.any():
        fail("rows", f"row numbers from 0 to {count - 1}", int(rows[outside][0]), remedy)
    times = torch.bincount(rows, minlength=count)
    wrong = (row_weights(tokens, o, torch.float32).read != 0) & (times != 1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        fail("rows", "each supervised row once", f"row {row} {int(times[row])} times", remedy)


def check_log_probabilities(
    logprobs: Tensor, ids: Tensor, rows: Tensor | None, tokens: Tokens, o: LossOptions, vocab: int
) -> None:
    """Refuses values > 0 in supervised rows, except for rounding. `rows` are the rows that `logprobs` belongs to."""
    if not all(is_readable(x) for x in (logprobs, ids, *tokens) if x is not None):
        return
    rounding = max(1e-3, 64 * torch.finfo(logprobs.dtype).eps)  # of a difference of logits up to 64
    if logprobs.numel() == 0 or logprobs.max() <= rounding:  # one pass; a NaN, which may be padding, goes on
        return
    supervised = row_weights(tokens, o, torch.float32).kinds != 0
    supervised = supervised.view(logprobs.shape[:-1]) if rows is None else supervised[rows]
    wrong = (logprobs > rounding) & (ids >= 0) & (ids < vocab) & supervised[..., None]
    if wrong.any() and (wrong := wrong & _is_first(ids)).any():
        got, remedy = f"{logprobs[wrong].max():.4g}", "Pass `log_softmax(-1).topk(k)`, neither probabilities nor logits."
        fail("teacher_logprobs", "log-probabilities, which are <= 0", got, remedy)


def _is_first(ids: Tensor) -> Tensor:
    """Whether an id is the first of its value in its row: later ones are ignored."""
    values, order = ids.sort(dim=-1, stable=True)
    first = torch.ones_like(ids, dtype=torch.bool)
    return first.scatter_(-1, order[..., 1:], values[..., 1:] != values[..., :-1])
