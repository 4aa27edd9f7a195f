"""Checks of arguments, made once at the public functions: name, expected, got, remedy."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from sadkernels.row_layout import row_layout

_LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def fail(name: str, expected: str, got: object, remedy: str, error: type[Exception] = ValueError) -> None:
    """Raises `error` with the one message form that this package uses."""
    raise error(f"{name}: expected {expected}, got {got}. {remedy}")


def check_logits(name: str, x: Tensor) -> None:
    """A (..., V) floating-point tensor with V >= 1 and a unit stride on V."""
    if not isinstance(x, Tensor):
        fail(name, "a tensor", type(x).__name__, "Pass the model's logits.", TypeError)
    if x.dtype not in _LOGITS_DTYPES:
        fail(name, "float32, bfloat16, float16 or float64", x.dtype, "Convert it with `.to(torch.float32)`.", TypeError)
    if x.dim() < 1 or x.shape[-1] < 1:
        fail(name, "shape (..., V) with V >= 1", tuple(x.shape), "The last dimension holds the vocabulary.")
    if x.stride(-1) != 1 and x.shape[-1] != 1:
        fail(name, "unit stride on the last dimension", f"strides {x.stride()}", "Call `.contiguous()` first.")


def check_span_ids(name: str, ids: Tensor, shape: torch.Size, device: torch.device, like: str) -> None:
    """An integer tensor of exactly `shape` on `device`."""
    if not isinstance(ids, Tensor):
        fail(name, "an integer tensor", type(ids).__name__, "Use `torch.as_tensor(ids)`.", TypeError)
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        fail(name, "an integer dtype", ids.dtype, "Two masks become ids with `sad.span_ids_from_masks`.", TypeError)
    if ids.shape != shape:
        fail(name, f"shape {tuple(shape)}, that of {like} without V", tuple(ids.shape), "Give every row one id.")
    if ids.device != device:
        fail(name, f"a tensor on {device}, like {like}", f"one on {ids.device}", "Move it with `.to(...)`.")


def check_number(name: str, value: object, *, above: float | None = None, at_least: float | None = None) -> float:
    """A finite real number within its bound, as a float."""
    bound = f" > {above}" if above is not None else f" >= {at_least}" if at_least is not None else ""
    if isinstance(value, bool) or not isinstance(value, Real):
        fail(name, f"a number{bound}", type(value).__name__, "Pass a Python float.", TypeError)
    value = float(value)
    too_low = (above is not None and value <= above) or (at_least is not None and value < at_least)
    if too_low or not abs(value) < math.inf:  # also catches NaN; torch.compile can trace it
        fail(name, f"a finite number{bound}", value, "Choose a value in that range.")
    return value


def check_beta(beta: object) -> float:
    """The teacher's weight in a mixture, strictly between 0 and 1."""
    value = check_number("beta", beta)
    if not 0.0 < value < 1.0:
        remedy = "Its limits have names: divergence='forward_kl' towards 0, 'reverse_kl' towards 1."
        fail("beta", "a number with 0 < beta < 1", value, remedy)
    return value


def check_per_side(name: str, value: object, default: float | None) -> tuple[float | None, float | None]:
    """(student, teacher) from one number for both, a pair, or None for `default`; if that is None, an entry may be too."""
    if not isinstance(value, (tuple, list)):
        value = (value, value)
    elif len(value) != 2 or (default is not None and None in value):
        fail(name, "a number, or a pair (student, teacher)", repr(value), "Give each side its own.")
    return tuple(default if x is None else check_number(name, x, above=0.0) for x in value)


def check_process_group(name: str, group: object) -> None:
    """A process group of torch.distributed, or None."""
    if group is None:
        return
    if not torch.distributed.is_available() or not isinstance(group, torch.distributed.ProcessGroup):
        fail(name, "a ProcessGroup", type(group).__name__, "Pass e.g. `torch.distributed.group.WORLD`.", TypeError)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """One of a few strings."""
    if value not in choices:
        fail(name, "one of " + ", ".join(map(repr, choices)), repr(value), "Choose one of these.")


def check_normalizer(normalizer, reduction: str, device: torch.device) -> Tensor | None:
    """The normalizer as a (2,) tensor on `device`, without a device sync."""
    if normalizer is None:
        return None
    wanted = {"mean": 1, "span_mean": 2}.get(reduction)
    if wanted is None:
        fail("normalizer", "None with reduction 'sum' or 'none'", "a value", "Use 'mean' or 'span_mean' with it.")
    expected = "a number or 0-dim tensor" if wanted == 1 else "two numbers or a tensor of shape (2,)"
    if isinstance(normalizer, Tensor):
        if normalizer.numel() != wanted:
            fail("normalizer", expected, f"shape {tuple(normalizer.shape)}", f"reduction={reduction!r} divides so.")
        if normalizer.device != device:
            fail("normalizer", f"a tensor on {device}", f"one on {normalizer.device}", "Move it there.")
        return normalizer.detach().reshape(-1).expand(2)
    numbers = normalizer if isinstance(normalizer, (tuple, list)) else (normalizer,)
    if len(numbers) != wanted:
        fail("normalizer", expected, repr(normalizer), f"reduction={reduction!r} divides so.")
    values = [check_number("normalizer", x, at_least=0.0) for x in numbers]
    dtype = torch.float64  # counts stay exact; they become the loss's dtype where they divide
    return torch.stack([torch.full((), x, dtype=dtype, device=device) for x in values]).expand(2)


def check_vocab_size(vocab_size, student: Tensor, teacher: Tensor) -> int:
    shared = min(student.shape[-1], teacher.shape[-1])
    if vocab_size is None:
        return shared
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, (int, torch.SymInt)):
        fail("vocab_size", "an int", type(vocab_size).__name__, "Pass the tokenizer's size.", TypeError)
    if not 1 <= vocab_size <= shared:
        fail("vocab_size", f"1 to {shared}, the columns both logits have", vocab_size, "Leave it out to use all.")
    return vocab_size


def check_writable(student: Tensor) -> None:
    """In-place needs every element at its own address, in rows that a kernel can walk."""
    overlapping = any(size > 1 and stride == 0 for size, stride in zip(student.shape, student.stride()))
    if overlapping or row_layout(student) is None:
        got = f"shape {tuple(student.shape)} with strides {student.stride()}"
        fail("inplace_backward", "student_logits whose rows lie apart in memory", got, "Call `.contiguous()` first.")
