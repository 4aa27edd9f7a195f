"""The backends under test: all that this machine can run, the CPU backend once per instruction set.

Without a GPU, Triton kernels run in the interpreter and CUDA kernels in the host emulation of `csrc/cuda/emulation.h`.
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
    """A backend and the device of its tensors."""

    name: str
    device: torch.device


def _all() -> list[str]:
    if chosen := os.environ.get("SAD_TEST_BACKENDS"):  # such as "triton,cuda" on a machine without the CPU extension
        return chosen.split(",")
    isas = extension.load("cpu").supported_isas()  # an ImportError here is a failure: the extension must be built
    return ["reference", *(f"cpu-{isa}" for isa in isas), "triton", "cuda"]


@pytest.fixture
def emulated_cuda(monkeypatch) -> None:
    """Lets the CUDA backend run on CPU tensors during a test."""
    if "SAD_CUDA_EMULATED" not in os.environ:  # otherwise the tests use the build that is named there
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
