"""Tests of the CUDA kernels as such; what every backend must do is in the tests of the folder above."""

from __future__ import annotations

import pytest
import torch

import setup
from tests.sadkernels.conftest import Backend


@pytest.fixture(scope="session")
def nvcc() -> str:
    """The CUDA compiler that an installation would use."""
    try:
        return setup.find_nvcc()
    except setup.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def emulated_backend(emulated_cuda) -> Backend:
    """The emulated kernels, GPU or not."""
    return Backend("cuda", torch.device("cpu"))
