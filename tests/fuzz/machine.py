"""The backends that this machine has."""

from __future__ import annotations

import os

import torch

from sadkernels import backends
from sadkernels.native import extension
from tests.interpreter import patch_language_once_per_launch
from tests.sadkernels.cuda import emulated

GPU = ("triton", "cuda")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported


def names() -> list[str]:
    """All backends that this machine may have; nothing is built."""
    return ["reference", *(f"cpu-{isa}" for isa in extension.load("cpu").supported_isas()), *GPU]


def available(wanted: list[str] | None = None) -> dict[str, str]:
    """Backend -> device of its tensors; the CPU backend once per instruction set, such as "cpu-avx2".

    Without a GPU, Triton runs in its interpreter (TRITON_INTERPRET=1), and the CUDA kernels run in the
    emulation of `csrc/cuda/emulation.h`, which is built if it is wanted.

    Args:
        wanted: Names to keep; "cpu" keeps all instruction sets. None keeps all.
    """
    kept = [name for name in names() if wanted is None or name in wanted or name.partition("-")[0] in wanted]
    found = {}
    for name in kept:
        device = "cuda" if name in GPU and torch.cuda.is_available() else "cpu"
        if name == "cuda" and device == "cpu" and "SAD_CUDA_EMULATED" not in os.environ:
            if emulated.unbuildable():
                continue
            os.environ["SAD_CUDA_EMULATED"] = str(emulated.library())
        if name == "triton" and device == "cpu":
            patch_language_once_per_launch()
        if backends.why_not(name.partition("-")[0], "span_kl", torch.device(device), torch.float32) is None:
            found[name] = device
    return found
