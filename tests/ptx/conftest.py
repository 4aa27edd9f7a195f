"""Fixtures that run a backend as compiled code on the executor."""

from __future__ import annotations

import importlib.util

import pytest

import setup
from sadkernels.native import extension
from sadkernels.triton.launch import Launch
from tests.ptx.cuda_kernels import CudaExecutor, compiled
from tests.ptx.machine import Conditions, unbuildable
from tests.ptx.triton_kernels import TritonExecutor
from tests.sadkernels.cuda import emulated
from tests.sadkernels.cuda.conftest import DEFAULT_GPU, gpu

collect_ignore = [] if importlib.util.find_spec("triton") else ["test_triton.py"]


@pytest.fixture(scope="session", autouse=True)
def executor() -> None:
    """Skips the tests where there is no compiler for the executor."""
    if reason := unbuildable():
        pytest.skip(reason)


@pytest.fixture
def conditions() -> Conditions:
    """The errors of approximations in the launches of a test, and the order of their blocks."""
    return Conditions(noise=1)


@pytest.fixture
def run_triton(monkeypatch, conditions):
    """Returns a function that lets the Triton backend run code for an architecture until the test ends."""

    def run_triton(architecture: int) -> TritonExecutor:
        executor = TritonExecutor(architecture, conditions)
        monkeypatch.setattr(Launch, "run", lambda launch, _: executor.run(launch))
        return executor

    return run_triton


@pytest.fixture
def run_cuda(monkeypatch, conditions):
    """Returns a function that lets the CUDA backend run compiled kernels until the test ends."""
    if reason := emulated.unbuildable():
        pytest.skip(reason)
    monkeypatch.setenv("SAD_CUDA_EMULATED", str(emulated.library()))
    monkeypatch.setenv("SAD_EMULATION", "threads=128")
    active = []

    def run_cuda(source: str, architecture: int, block_kb: float = 227) -> CudaExecutor:
        try:
            ptx = compiled(architecture, source)
        except setup.Unavailable as reason:
            pytest.skip(str(reason))
        extension_ = extension.load("cuda")
        properties = gpu(architecture, block_kb, 2 * block_kb + 2, gpc_sms=(8,))
        extension_.set_emulated_gpu(**properties, code_arch=architecture, ptx_version=architecture)
        active.append(CudaExecutor(extension_, ptx, conditions))
        active[-1].activate(monkeypatch)
        return active[-1]

    yield run_cuda
    for executor in active:
        executor.close()
    if active:
        extension.load("cuda").set_emulated_gpu(**DEFAULT_GPU, code_arch=90, ptx_version=90)
