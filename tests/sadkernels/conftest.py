"""The backends under test: every one that this machine can run, the CPU extension once per instruction set.

Without a GPU, Triton's kernels run in its interpreter and the CUDA kernels in the emulation of `csrc/cuda/emulation.h`.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import pytest
import torch

from sadkernels import backends
from sadkernels.native import extension
from tests.sadkernels.cuda import emulated


class Backend(NamedTuple):
    """A backend and where its tensors live."""

    name: str
    device: torch.device


def _all() -> list[str]:
    isas = extension.load("cpu").supported_isas()  # an ImportError here is a failure: the extension must be there
    return ["reference", *(f"cpu-{isa}" for isa in isas), "triton", "cuda"]


@pytest.fixture
def emulated_cuda(monkeypatch) -> None:
    """The CUDA backend takes CPU tensors for the length of a test."""
    if "SAD_CUDA_EMULATED" not in os.environ:  # else another build is under test
        if reason := emulated.unbuildable():
            pytest.skip(reason)
        monkeypatch.setenv("SAD_CUDA_EMULATED", str(emulated.library()))


@pytest.fixture(params=_all())
def backend(request, monkeypatch) -> Backend:
    name, _, isa = request.param.partition("-")
    device = torch.device("cuda" if torch.cuda.is_available() and name in ("triton", "cuda") else "cpu")
    if isa:
        monkeypatch.setenv("SAD_CPU_ISA", isa)
    if name == "cuda" and device.type == "cpu":
        request.getfixturevalue("emulated_cuda")
    if reason := backends.why_not(name, "span_kl", device, torch.float32):
        pytest.skip(reason)
    return Backend(name, device)
