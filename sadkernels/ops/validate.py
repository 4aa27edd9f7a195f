"""Validation of arguments, once, at the public functions. Every message names the argument, what was expected, what was
given, and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sadkernels import backends
from sadkernels.divergence import DIVERGENCES, DivergenceConfig
from sadkernels.ops.row_weights import LossOptions
from sadkernels.row_layout import overlaps_itself, row_layout
from sadkernels.tokens import REDUCTIONS

_LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_FLOAT32 = torch.finfo(torch.float32)  # the kernels compute in float32
_RANGE = f"{_FLOAT32.smallest_normal:.1e} to {_FLOAT32.max:.1e}, the range of float32"


def fail(name: str, expected: str, got: object, remedy: str, error: type[Exception] = ValueError) -> None:
    """Raises `error` with the message form of this package."""
    raise error(f"{name}: expected {expected}, got {got}. {remedy}")


# --- tensors ---


def check_logits(name: str, x: Tensor) -> None:
    """Requires a (..., V) floating-point tensor with V >= 1 and a unit stride on V."""
    _check_floating(name, x, "Pass the model's logits.")
    if x.dim() < 1 or x.shape[-1] < 1:
        fail(name, "shape (..., V) with V >= 1", tuple(x.shape), "The last dimension is the vocabulary.")
    _check_unit_stride(name, x)


def _check_floating(name: str, x: Tensor, remedy: str) -> None:
    """Requires a dense floating-point tensor without a tangent, outside torch.func."""
    if not isinstance(x, Tensor):
        fail(name, "a tensor", type(x).__name__, remedy, TypeError)
    if x.dtype not in _LOGITS_DTYPES:
        fail(name, "float32, bfloat16, float16 or float64", x.dtype, "Convert it with `.to(torch.float32)`.", TypeError)
    if x.layout != torch.strided:
        fail(name, "a dense tensor", x.layout, "Call `.to_dense()` first.", TypeError)
    check_derivatives(name, x)


def _check_unit_stride(name: str, x: Tensor) -> None:
    if x.stride(-1) != 1 and x.shape[-1] != 1:
        fail(name, "unit stride on the last dimension", f"strides {x.stride()}", "Call `.contiguous()` first.")


def check_derivatives(name: str, x: Tensor) -> None:
    """Refuses torch.func and forward-mode AD: PyTorch would drop their derivatives of a custom op without an error."""
    if torch._C._are_functorch_transforms_active():
        got = "a call inside a torch.func transform (grad, jvp, vmap, ...)"
    elif forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        got = "one with a tangent of forward-mode AD"
    else:
        return
    remedy = "The fused losses have first derivatives in reverse mode only: use `loss.backward()` or `torch.autograd.grad`."
    fail(name, "a tensor for reverse-mode autograd", got, remedy, NotImplementedError)


def check_teacher(name: str, teacher: Tensor, student: Tensor, last: str) -> None:
    """Requires the student's device and its shape except for the last dimension, called `last`, and no gradient."""
    if teacher.shape[:-1] != student.shape[:-1]:
        got = f"{tuple(teacher.shape)} against {tuple(student.shape)}"
        fail(name, f"the student's shape except for {last}", got, "Run both models on the same tokens.")
    if teacher.device != student.device:
        got = f"{teacher.device} against {student.device}"
        fail(name, "the student's device", got, "Move one of them with `.to(...)`.")
    if teacher.requires_grad:
        fail(name, "a tensor without grad", "one that requires grad", f"Pass `{name}.detach()`.")


def check_integers(
    name: str, ids: Tensor, shape: torch.Size, device: torch.device, like: str, remedy: str = "Pass one integer per entry."
) -> None:
    """Requires an integer tensor of this shape, which is that of `like`, on this device."""
    if not isinstance(ids, Tensor):
        fail(name, "an integer tensor", type(ids).__name__, "Use `torch.as_tensor(ids)`.", TypeError)
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        fail(name, "an integer dtype", ids.dtype, remedy, TypeError)
    if ids.shape != shape:
        fail(name, f"shape {tuple(shape)}, that of {like}", tuple(ids.shape), remedy)
    if ids.device != device:
        fail(name, f"a tensor on {device}, like {like}", f"one on {ids.device}", "Move it with `.to(...)`.")


def check_writable(student: Tensor, others: Sequence[Tensor]) -> None:
    """Requires logits whose memory the gradient can overwrite.

    They are the output of an operation (the `.grad` of a leaf would be the leaf itself), each element has an address of its
    own, a kernel can address the rows, and the tensors in `others` are elsewhere.
    """
    name, base = "inplace_backward", student._base
    if student.is_leaf or (base is not None and base.is_leaf and base.requires_grad):
        got = "a leaf tensor that requires grad" if student.is_leaf else "a view of one"
        remedy = "The gradient would overwrite the parameter: leave inplace_backward=False."
        fail(name, "student_logits that an operation computed, such as a model's", got, remedy)
    got = f"shape {tuple(student.shape)} with strides {student.stride()}"
    if overlaps_itself(student):
        fail(name, "student_logits whose rows do not overlap in memory", got, "Call `.contiguous()` first.")
    if row_layout(student) is None:
        fail(name, "student_logits with at most two strides between rows", got, "Call `.contiguous()` first.")
    if not torch.compiler.is_compiling() and any(_share_memory(student, x) for x in others):
        expected = "student_logits that share no memory with the teacher's tensors"
        fail(name, expected, "tensors that overlap in memory", "Pass a `.clone()` of the teacher's.")


def _share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether the address ranges of two tensors overlap."""
    if a.numel() == 0 or b.numel() == 0 or a.untyped_storage()._cdata != b.untyped_storage()._cdata:
        return False
    (a_first, a_end), (b_first, b_end) = _byte_range(a), _byte_range(b)
    return a_first < b_end and b_first < a_end


def _byte_range(x: Tensor) -> tuple[int, int]:
    """The first byte of `x` in its storage, and the byte after its last."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))
    return x.storage_offset() * x.element_size(), (x.storage_offset() + last + 1) * x.element_size()


def check_topk(logprobs: Tensor, ids: Tensor, shape: torch.Size, device: torch.device, expected: str) -> None:
    """Requires log-probabilities and columns of shape (*shape, k) on this device; `expected` describes that shape."""
    name = "teacher_logprobs"
    _check_floating(name, logprobs, "Pass the values of `log_softmax(-1).topk(k)`.")
    if logprobs.dim() < 1 or logprobs.shape[-1] < 1:
        fail(name, "shape (..., k) with k >= 1", tuple(logprobs.shape), "Pass at least one column per row.")
    if logprobs.shape[:-1] != shape:
        got = f"{tuple(logprobs.shape)} against {tuple(shape)}"
        fail(name, expected, got, "Pass k values per row.")
    if logprobs.requires_grad:
        fail(name, "a tensor without grad", "one that requires grad", "Pass `.detach()` of it.")
    if logprobs.device != device:
        fail(name, f"a tensor on {device}", f"one on {logprobs.device}", "Move it with `.to(...)`.")
    check_integers("teacher_ids", ids, logprobs.shape, device, name, "Pass the column of each log-probability.")


def check_target_ids(target_ids: Tensor, student: Tensor, like: str) -> None:
    """Requires one integer per row of `student` (..., V or H)."""
    remedy = "Pass one column of the vocabulary per row."
    check_integers(
        "target_ids", target_ids, student.shape[:-1], student.device, f"{like} without its last dimension", remedy
    )


def check_mixture(alpha: object, target_ids: Tensor | None, student: Tensor, like: str) -> float:
    """Requires 0 <= alpha <= 1, the share of the KL; less than 1 needs targets."""
    alpha = check_number("alpha", alpha, at_least=0.0)
    if alpha > 1.0:
        fail("alpha", "a number from 0 to 1", alpha, "It is the share of the KL.")
    if target_ids is not None:
        check_target_ids(target_ids, student, like)
    elif alpha < 1.0:
        fail("target_ids", "a tensor with alpha < 1", None, "Pass the trajectory's tokens, or alpha=1.")
    return alpha


def check_head(side: str, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns hidden states, weight and bias of one side: a DTensor gathered, and under autocast in its dtype."""
    names = {f"{side}_weight": weight} | ({} if bias is None else {f"{side}_bias": bias})
    weight, bias = _gathered(f"{side}_weight", weight), _gathered(f"{side}_bias", bias)
    _check_hidden(f"{side}_hidden", hidden)
    for name, x in names.items():
        _check_floating(name, x, "Pass the head's parameter.")
        if x.device != hidden.device:
            expected = f"a tensor on {hidden.device}, like {side}_hidden"
            fail(name, expected, f"one on {x.device}", "Move it with `.to(...)`.")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1] or weight.shape[0] < 1:
        expected = f"shape (V, {hidden.shape[-1]}) with V >= 1, H that of {side}_hidden"
        fail(f"{side}_weight", expected, tuple(weight.shape), "Pass the head's `.weight`, as nn.Linear stores it.")
    if bias is not None and bias.shape != weight.shape[:1]:
        fail(f"{side}_bias", f"shape ({weight.shape[0]},)", tuple(bias.shape), "Pass the head's `.bias`.")
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    for name, x in ((f"{side}_weight", weight), (f"{side}_bias", bias)):
        if x is not None and x.dtype != hidden.dtype:
            got = f"{x.dtype} beside hidden states of {hidden.dtype}"
            fail(name, f"the dtype of {side}_hidden", got, "Convert one of them, or run under torch.autocast.", TypeError)
    return hidden, weight, bias


def _check_hidden(name: str, hidden: Tensor) -> None:
    """Requires (..., H) with H >= 1, at least one dimension of tokens, and a unit stride on H."""
    _check_floating(name, hidden, "Pass the model's last hidden states.")
    if hidden.dim() < 2 or hidden.shape[-1] < 1:
        expected = "shape (..., H) with H >= 1 and at least one dimension of tokens"
        fail(name, expected, tuple(hidden.shape), "The last dimension is the hidden size.")
    _check_unit_stride(name, hidden)


def check_rows(rows: Tensor, device: torch.device) -> None:
    """Requires an int64 tensor (M,) on `device`; `validate_tokens.check_row_numbers` checks its values."""
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.dim() != 1:
        got = f"{rows.dtype} {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        remedy = "Flatten the mask of supervised rows: `.nonzero().squeeze(-1)`."
        fail("rows", "int64 of shape (M,)", got, remedy, TypeError)
    if rows.device != device:
        fail("rows", f"a tensor on {device}", f"one on {rows.device}", "Move it with `.to(...)`.")


def is_readable(x: Tensor) -> bool:
    """Whether the values of `x` can be checked: a CPU tensor outside torch.compile. On a GPU that would synchronize."""
    return not torch.compiler.is_compiling() and type(x) is Tensor and x.device.type == "cpu"


# --- options ---


def check_number(name: str, value: object, *, above: float | None = None, at_least: float | None = None) -> float:
    """A real number within its bound that float32 represents, as a float: not one that becomes infinite or 0 there."""
    if type(value) is not float:
        if isinstance(value, bool) or not isinstance(value, Real):
            fail(name, f"a number{_bound(above, at_least)}", type(value).__name__, "Pass a Python float.", TypeError)
        value = _as_float(value)
    too_low = (above is not None and value <= above) or (at_least is not None and value < at_least)
    if too_low or not abs(value) < math.inf:  # also true for NaN; torch.compile can trace it
        fail(name, f"a finite number{_bound(above, at_least)}", value, "Choose a value in that range.")
    if abs(value) > _FLOAT32.max or (value != 0.0 and abs(value) < _FLOAT32.smallest_normal):
        fail(name, f"{'0, or ' if above is None else ''}{_RANGE}", value, "Choose a value in that range.")
    return value


def _as_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # a huge int or fraction
        return math.inf


def check_flag(name: str, value: object) -> bool:
    """Requires True or False: any other value has a truth that the caller may not mean."""
    if not isinstance(value, bool):
        fail(name, "True or False", repr(value), "Pass a bool.", TypeError)
    return value


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Requires one of a few strings."""
    if not isinstance(value, str) or value not in choices:
        fail(name, "one of " + ", ".join(map(repr, choices)), repr(value), "Choose one of these.")


def check_chunk_bytes(value: object) -> int | None:
    """An integer >= 1, or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        fail("chunk_bytes", "an integer >= 1", repr(value), "256 << 20 fits on a GPU with 24 GB.")
    return value


def check_process_group(group: object) -> None:
    """Requires a process group of torch.distributed, or None."""
    if group is None:
        return
    if not torch.distributed.is_available() or not isinstance(group, torch.distributed.ProcessGroup):
        remedy = "Pass e.g. `torch.distributed.group.WORLD`."
        fail("process_group", "a ProcessGroup", type(group).__name__, remedy, TypeError)


def loss_options(
    kernel: str,
    tensors: tuple[Tensor, ...],
    *,
    lambda_reason: float,
    lambda_act: float,
    lambda_observe: float,
    reduction: str,
    shift: bool,
    return_stats: bool,
    backend: str,
    inplace_backward: bool = False,
) -> LossOptions:
    """The options that every loss has, validated; the backend is resolved here, once per call.

    Args:
        kernel: The op that the backend must have, such as "span_kl".
        tensors: The floating-point tensors that the kernel reads, the student's first; it has shape (..., V or H).

    Raises:
        ValueError, TypeError: An option is out of range or of the wrong type.
        sadkernels.backends.BackendUnavailableError: The backend was named and cannot run here.
    """
    student = tensors[0]
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("backend", backend, ("auto", *backends.PACKAGES))
    if check_flag("shift", shift) and student.dim() < 2:
        fail("shift", "logits of shape (..., T, V)", tuple(student.shape), "Leave shift=False.")
    inplace = check_flag("inplace_backward", inplace_backward) and torch.is_grad_enabled() and student.requires_grad
    if inplace:
        check_writable(student, tensors[1:])
    return LossOptions(
        check_number("lambda_reason", lambda_reason, at_least=0.0),
        check_number("lambda_act", lambda_act, at_least=0.0),
        check_number("lambda_observe", lambda_observe, at_least=0.0),
        reduction,
        shift,
        check_flag("return_stats", return_stats),
        inplace,
        backends.resolve(backend, kernel, student.device, *(x.dtype for x in tensors)),
    )


def divergence_config(
    student_columns: int,
    teacher_columns: int,
    *,
    vocab_size: int | None,
    temperature: float,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    logit_scale: float | tuple[float, float] | None = None,
    logit_softcap: float | tuple[float | None, float | None] | None = None,
) -> DivergenceConfig:
    """The options of the divergence, validated."""
    check_choice("divergence", divergence, DIVERGENCES)
    scales = _per_side("logit_scale", logit_scale, default=1.0)
    caps = _per_side("logit_softcap", logit_softcap, default=None)
    temperature = check_number("temperature", temperature, above=0.0)
    for scale, cap in zip(scales, caps):
        _check_factors(scale, cap, temperature)
    return DivergenceConfig(
        _vocab_size(vocab_size, min(student_columns, teacher_columns)),
        temperature,
        divergence,
        _beta(beta),
        *scales,
        *caps,
    )


def student_config(
    columns: int, *, vocab_size: int | None, temperature: float, logit_scale: float | None, logit_softcap: float | None
) -> DivergenceConfig:
    """The options of the student's distribution, validated, for a loss without teacher logits."""
    temperature = check_number("temperature", temperature, above=0.0)
    scale = 1.0 if logit_scale is None else check_number("logit_scale", logit_scale, above=0.0)
    cap = None if logit_softcap is None else check_number("logit_softcap", logit_softcap, above=0.0)
    _check_factors(scale, cap, temperature)
    return DivergenceConfig(_vocab_size(vocab_size, columns), temperature, student_scale=scale, student_softcap=cap)


def _check_factors(scale: float, cap: float | None, temperature: float) -> None:
    """Requires that float32 represents the factors of the kernels: log2(e) scale / T, or scale / cap and log2(e) cap / T."""
    factors = {"logit_scale / temperature": scale / temperature}
    if cap is not None:
        factors = {"logit_scale / logit_softcap": scale / cap, "logit_softcap / temperature": cap / temperature}
    for name, value in factors.items():
        if not _FLOAT32.smallest_normal <= value <= 0.5 * _FLOAT32.max:
            fail(name, _RANGE, value, "Choose values that differ less.")


def _vocab_size(value: object, shared: int) -> int:
    if value is None:
        return shared
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        fail("vocab_size", "an int", type(value).__name__, "Pass the tokenizer's size.", TypeError)
    if not 1 <= value <= shared:
        fail("vocab_size", f"1 to {shared}, the columns both logits have", value, "Leave it out to use all.")
    return value


def _beta(beta: object) -> float:
    value = check_number("beta", beta)
    if not 0.0 < value < 1.0:
        remedy = "Its limits have names: divergence='forward_kl' towards 0, 'reverse_kl' towards 1."
        fail("beta", "a number with 0 < beta < 1", value, remedy)
    return value


def _per_side(name: str, value: object, default: float | None) -> tuple[float | None, float | None]:
    """(student, teacher) from one number for both, a pair, or None for `default`; if that is None, an entry may be None."""
    if value is None:
        return default, default
    if not isinstance(value, (tuple, list)):
        value = (value, value)
    elif len(value) != 2 or (default is not None and None in value):
        fail(name, "a number, or a pair (student, teacher)", repr(value), "Pass one number per side.")
    return tuple(default if x is None else check_number(name, x, above=0.0) for x in value)


def _bound(above: float | None, at_least: float | None) -> str:
    return f" > {above}" if above is not None else f" >= {at_least}" if at_least is not None else ""


def _gathered(name: str, x: Tensor | None) -> Tensor | None:
    """The whole of a DTensor; any other tensor unchanged.

    A sharded one must not need a gradient. Only the caller knows whether the processes have the same rows: DTensor would
    keep each process's own gradient, which is wrong under FSDP2, where the rows differ.
    """
    gather: Callable[[], Tensor] | None = getattr(x, "full_tensor", None)
    if gather is None:
        return x
    if x.requires_grad and torch.is_grad_enabled() and not all(placement.is_replicate() for placement in x.placements):
        remedy = (
            "Compute the loss inside the forward of the wrapped model, which gathers it. Or pass "
            "`.full_tensor(grad_placements=...)` of it: [Partial('avg')] averages the gradients of processes with different "
            "rows as FSDP2 does, [Replicate()] is for processes with the same rows (tensor parallelism)."
        )
        fail(name, "a whole tensor if it needs a gradient", f"a DTensor with placements {tuple(x.placements)}", remedy)
    return gather()
