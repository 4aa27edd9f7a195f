"""The backend that runs an op: which are installed, which was requested, and why one cannot run.

A backend is a package with one module per op. It has an op if that module exists.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from types import ModuleType
from typing import NamedTuple

import torch

from sadkernels import tuning
from sadkernels.native import extension
from sadkernels.native.cuda.device import unusable

PACKAGES = {
    "reference": "sadkernels.reference",
    "cpu": "sadkernels.native.cpu",
    "cuda": "sadkernels.native.cuda",
    "triton": "sadkernels.triton",
}
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class AutoRule(NamedTuple):
    """A row of the table that `backend="auto"` follows; None matches anything.

    Attributes:
        device: The device type of the tensors.
        op: The op's module name, such as "span_kl".
        dtypes: Dtypes of the student's tensors.
        architectures: Compute capabilities, such as 90 for 9.0.
        backends: The backends to try, best first. `reference` follows them.
        source: The measurement behind the order: a file in benchmarks/results, or "not measured".
    """

    device: str
    op: str | None
    dtypes: tuple[torch.dtype, ...] | None
    architectures: tuple[int, ...] | None
    backends: tuple[str, ...]
    source: str


# The first row that matches decides, so specific rows come first. On a GPU that `sad tune` has measured, the faster backend
# for the op and the dtype comes before those of the table.
AUTO_RULES = (
    AutoRule("cpu", None, None, None, ("cpu",), "benchmarks/results/span_kl_cpu.csv"),
    AutoRule("cuda", None, None, None, ("triton", "cuda"), "not measured: no kernel has run on a GPU yet"),
)


class BackendUnavailableError(RuntimeError):
    """A backend that was requested by name cannot run here; the message says what is missing."""


@functools.cache
def implementation(backend: str, op: str) -> ModuleType:
    """The module that holds `op` on `backend`."""
    return importlib.import_module(f"{PACKAGES[backend]}.{op}")


@torch.compiler.assume_constant_result  # a compiled graph keeps the backend that was resolved when it was traced
def resolve(backend: str, op: str, device: torch.device, *dtypes: torch.dtype) -> str:
    """The backend that runs `op`; `backend` is "auto" or one of `PACKAGES`.

    "auto" gives the first backend of `AUTO_RULES` that can run, or `reference` with one warning if none can. A backend
    requested by name is returned or refused, never replaced. Only `reference` computes float64, so "auto" gives it then
    without a warning.

    Raises:
        BackendUnavailableError: The backend was requested by name and cannot run here.
    """
    if backend == "auto":
        return _resolve_auto(op, device, dtypes)
    if reason := why_not(backend, op, device, *dtypes):
        raise BackendUnavailableError(f"backend={backend!r} cannot run {op}: {reason}.")
    return backend


def _resolve_auto(op: str, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> str:
    if torch.float64 in dtypes:
        return "reference"
    reasons = []
    for candidate in auto_order(op, device, dtypes):
        reason = why_not(candidate, op, device, *dtypes)
        if reason is None:
            return candidate
        reasons.append(f"backend {candidate!r} cannot run: {reason}")
    _warn_once(device.type, op, "; ".join(reasons) or f"there is no kernel for {device.type}")
    return "reference"


def auto_order(
    op: str, device: torch.device, dtypes: tuple[torch.dtype, ...] = (), rules: tuple[AutoRule, ...] = AUTO_RULES
) -> tuple[str, ...]:
    """The backends that "auto" tries for `op`, best first; none for a device that is not in the table.

    The backend that `sad tune` found to be the fastest comes first.

    Args:
        op: The op's module name, such as `"span_kl"`.
        device: The device of the tensors.
        dtypes: The dtypes of the floating-point tensors, the student's first.
        rules: The table.
    """
    for rule in rules:
        if (
            rule.device == device.type
            and rule.op in (None, op)
            and (rule.dtypes is None or (dtypes and dtypes[0] in rule.dtypes))
            and (rule.architectures is None or _architecture(device) in rule.architectures)
        ):
            measured = tuning.choice(f"backend.{op}", device, None, *dtypes[:1])
            first = (measured["backend"],) if measured and measured["backend"] in rule.backends else ()
            return (*first, *(backend for backend in rule.backends if backend not in first))
    return ()


def why_not(backend: str, op: str, device: torch.device, *dtypes: torch.dtype) -> str | None:
    """The reason why `op` cannot run on `backend` for tensors of this device and these dtypes; None if it can.

    Args:
        backend: One of `PACKAGES`.
        op: The op's module name, such as `"span_kl"`.
        device: The device of the tensors.
        dtypes: The dtypes of the floating-point tensors, if the op has any.
    """
    if reason := _missing(backend, op):
        return reason
    if backend == "reference":
        return None
    if backend == "triton":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if device.type != "cuda" and not (device.type == "cpu" and interpreted):
            return f"Triton kernels run on GPU tensors, these are on {device}; use backend='auto'"
    elif backend == "cuda":
        if reason := unusable(device):
            return reason
    elif device.type != backend:
        return f"it takes {backend} tensors, these are on {device}; use backend='auto'"
    for dtype in dtypes:
        if dtype not in _KERNEL_DTYPES:
            return f"it has no {dtype} kernel; convert to float32 or use backend='reference'"
    return None


def _missing(backend: str, op: str) -> str | None:
    """What is not installed for `op` on `backend`, with the remedy; None if everything is."""
    if backend in ("cpu", "cuda") and (reason := extension.missing(backend)):
        return reason
    return _missing_module(backend, op)


@functools.cache
def _missing_module(backend: str, op: str) -> str | None:
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed; `pip install triton` (PyTorch for CUDA includes it)"
    if importlib.util.find_spec(f"{PACKAGES[backend]}.{op}") is None:
        return f"the op {op!r} has no {backend} kernel in this version; use backend='auto'"
    return None


def _architecture(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def _warn_once(device_type: str, op: str, reason: str) -> None:
    warnings.warn(
        f"{op} runs on the slow `reference` backend for {device_type} tensors: {reason}.", RuntimeWarning, stacklevel=4
    )
