"""Which backend runs an op: what is installed, what was asked for, and why something cannot run.

A backend is a package with one module per op; an op exists on a backend when that module exists.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from types import ModuleType

import torch

from sadkernels import auto
from sadkernels.native import extension
from sadkernels.native.cuda.device import unusable

PACKAGES = {
    "reference": "sadkernels.reference",
    "cpu": "sadkernels.native.cpu",
    "cuda": "sadkernels.native.cuda",
    "triton": "sadkernels.triton",
}
_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class BackendUnavailableError(RuntimeError):
    """A backend that was asked for by name cannot run here; the message says what is missing."""


def implementation(backend: str, op: str) -> ModuleType:
    """The module that holds `op` on `backend`."""
    return importlib.import_module(f"{PACKAGES[backend]}.{op}")


@functools.cache
def _missing_module(backend: str, op: str) -> str | None:
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed; `pip install triton` (PyTorch for CUDA brings it along)"
    if importlib.util.find_spec(f"{PACKAGES[backend]}.{op}") is None:
        return f"the op {op!r} has no {backend} kernel in this version; use backend='auto'"
    return None


def _missing(backend: str, op: str) -> str | None:
    """What is not installed for `op` on `backend`, with the remedy; None when everything is there."""
    if backend in ("cpu", "cuda") and (reason := extension.missing(backend)):
        return reason
    return _missing_module(backend, op)


def why_not(backend: str, op: str, device: torch.device, *dtypes: torch.dtype) -> str | None:
    """Why `op` cannot run on `backend` for tensors of this device and these dtypes; None when it can.

    Args:
        backend: One of `PACKAGES`.
        op: The op's module name, such as `"span_kl"`.
        device: Where the tensors are.
        dtypes: The dtypes of the floating-point tensors, if the op takes any.
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


@functools.cache
def _warn_once(device_type: str, op: str, reason: str) -> None:
    warnings.warn(
        f"{op} runs on the slow `reference` backend for {device_type} tensors: {reason}.", RuntimeWarning, stacklevel=4
    )


def resolve(backend: str, op: str, device: torch.device, *dtypes: torch.dtype, columns: int | None = None) -> str:
    """The backend that will run `op`; `backend` is "auto" or one of `PACKAGES`.

    `"auto"` takes the first of `sadkernels.auto.order` that can run, and `reference` with one warning where none can;
    `columns` is the vocabulary, where there is one. A backend named by the caller is returned or refused, never
    replaced. float64 is computed by `reference` alone, so `"auto"` takes it there silently.

    Raises:
        BackendUnavailableError: The backend was named and cannot run here.
    """
    if backend == "auto":
        if torch.float64 in dtypes:
            return "reference"
        reasons = []
        for candidate in auto.order(op, device, dtypes, columns):
            reason = why_not(candidate, op, device, *dtypes)
            if reason is None:
                return candidate
            reasons.append(f"backend {candidate!r} cannot run: {reason}")
        _warn_once(device.type, op, "; ".join(reasons) or f"there is no kernel for {device.type}")
        return "reference"
    if reason := why_not(backend, op, device, *dtypes):
        raise BackendUnavailableError(f"backend={backend!r} cannot run {op}: {reason}.")
    return backend
