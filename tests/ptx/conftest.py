"""Fixtures that run a backend as compiled code on the executor."""

from __future__ import annotations

import pytest
import torch

from sadkernels.triton.launch import Launch
from tests.ptx.machine import Conditions, unbuildable
from tests.ptx.triton_kernels import TritonExecutor
from tests.sadkernels.conftest import Backend


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
    pytest.importorskip("triton", reason="Triton is not installed")

    def run_triton(architecture: int) -> TritonExecutor:
        executor = TritonExecutor(architecture, conditions)
        monkeypatch.setattr(Launch, "run", lambda launch, _: executor.run(launch))
        return executor

    return run_triton


@pytest.fixture
def triton_80(run_triton) -> Backend:
    """The Triton backend, compiled for sm_80."""
    run_triton(80)
    return Backend("triton", torch.device("cpu"))


@pytest.fixture
def triton_90(run_triton) -> Backend:
    """The Triton backend, compiled for sm_90."""
    run_triton(90)
    return Backend("triton", torch.device("cpu"))
