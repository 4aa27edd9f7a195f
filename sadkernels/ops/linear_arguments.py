"""Arguments that every loss from hidden states takes, checked at the public functions."""

from __future__ import annotations

import torch
from torch import Tensor

from sadkernels import checks

CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 256 << 20}  # enough rows for matrix products near their full speed


def check_head(side: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
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


def check_tokens(hidden: Tensor) -> tuple[torch.Size, torch.device]:
    """Shape (...,) and device of the student's tokens, of which there is at least one dimension."""
    if hidden.dim() < 2:
        expected = "shape (..., H) with at least one dimension of tokens"
        checks.fail("student_hidden", expected, tuple(hidden.shape), "Add it.")
    return hidden.shape[:-1], hidden.device


def check_rows(rows: Tensor, device: torch.device) -> None:
    """An int64 tensor (M,) on `device`."""
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
        got = f"{rows.dtype} {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        checks.fail(
            "rows", "int64 of shape (M,)", got, "Flatten the mask of supervised rows: `.nonzero().squeeze(-1)`.", TypeError
        )
    if rows.device != device:
        checks.fail("rows", f"a tensor on {device}", f"one on {rows.device}", "Move it with `.to(...)`.")


def check_chunk_bytes(value: object, device: torch.device) -> int:
    """A whole number, from 1 on; None for what is usual on `device`."""
    if value is None:
        return CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        checks.fail("chunk_bytes", "a whole number >= 1", repr(value), "A GPU with 24 GB has room for 256 << 20.")
    return value


def _gathered(x: Tensor | None) -> Tensor | None:
    """The whole of a tensor that is spread over processes; others as they are."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x
