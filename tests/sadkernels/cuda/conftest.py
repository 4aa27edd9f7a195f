"""Fixtures of the tests for the CUDA kernels alone. The tests for all backends are in the parent folder."""

from __future__ import annotations

import pytest
import torch

import setup
from sadkernels.native import extension
from tests.sadkernels.conftest import Backend


@pytest.fixture(scope="session")
def nvcc() -> str:
    """Returns the CUDA compiler that an installation would use."""
    try:
        return setup.find_nvcc()
    except setup.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def emulated_backend(emulated_cuda) -> Backend:
    """Returns the emulated kernels, with or without a GPU."""
    return Backend("cuda", torch.device("cpu"))


def gpu(
    arch: int, block_kb: float, sm_kb: float, l2_bytes: int = 50 << 20, gpc_sms: tuple[int, ...] = (2,)
) -> dict[str, object]:
    """Returns the properties of a GPU, as `set_emulated_gpu` and `plan` take them. `gpc_sms`: the SMs of each GPC."""
    shared = {"block_shared_bytes": int(block_kb * 1024), "sm_shared_bytes": int(sm_kb * 1024)}
    return {"arch": arch, "l2_bytes": l2_bytes, **shared, "gpc_sms": list(gpc_sms)}


DEFAULT_GPU = gpu(90, 227, 228)


@pytest.fixture
def set_gpu(emulated_backend):
    """Sets the GPU that launches are planned for, until the test ends.

    By default the kernels are compiled for sm_90. `code_arch`: The architecture that they behave as if compiled for.
    `ptx_version`: The architecture that the runtime reports for them.
    """
    kernels = extension.load("cuda")

    def set_gpu(properties: dict[str, object], code_arch: int = 90, ptx_version: int | None = None) -> None:
        kernels.set_emulated_gpu(**properties, code_arch=code_arch, ptx_version=ptx_version or code_arch)

    yield set_gpu
    set_gpu(DEFAULT_GPU)
