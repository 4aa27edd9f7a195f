"""Which backend runs, and what is said when one cannot."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

import sad
from sadkernels import backends
from sadkernels.native import extension

CPU = torch.device("cpu")
TENSORS = (torch.randn(2, 5), torch.randn(2, 5), torch.tensor([1, 2]))


def test_the_cpu_extension_is_built():
    """A missing extension is a failure here, never a quiet fall to `reference`."""
    assert extension.missing("cpu") is None
    assert "portable" in extension.load("cpu").supported_isas()


def test_auto_takes_the_kernels():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.resolve("auto", "span_kl", CPU, torch.float32, torch.bfloat16) == "cpu"
        assert backends.resolve("auto", "span_kl", CPU, torch.float64) == "reference"


@pytest.fixture
def without_extension(monkeypatch):
    """The machine of someone who had no compiler."""
    caches = (backends._missing, backends._warn_once)
    for cache in caches:
        cache.cache_clear()
    monkeypatch.setattr(extension, "missing", lambda name: "it was not built; install a C++17 compiler and reinstall")
    yield
    for cache in caches:
        cache.cache_clear()


def test_auto_falls_to_the_reference_with_one_warning(without_extension):
    with pytest.warns(RuntimeWarning, match=r"install a C\+\+17 compiler"):
        sad.fused_span_kl(*TENSORS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sad.fused_span_kl(*TENSORS)


def test_a_named_backend_never_falls_back(without_extension):
    with pytest.raises(backends.BackendUnavailableError, match="backend='cpu' cannot run span_kl: it was not built"):
        sad.fused_span_kl(*TENSORS, backend="cpu")


def test_named_backend_with_the_wrong_tensors():
    double = [x.double() if x.is_floating_point() else x for x in TENSORS]
    with pytest.raises(backends.BackendUnavailableError, match=r"no torch.float64 kernel"):
        sad.fused_span_kl(*double, backend="cpu")
    assert "takes cpu tensors, these are on cuda" in backends.why_not("cpu", "span_kl", torch.device("cuda"))


def test_unknown_instruction_set(monkeypatch):
    monkeypatch.setenv("SAD_CPU_ISA", "sse9")
    with pytest.raises(ValueError, match="no 'sse9'"):
        sad.fused_span_kl(*TENSORS, backend="cpu")


def test_triton_asks_for_a_gpu_outside_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if reason := backends._missing("triton", "span_kl"):
        pytest.skip(reason)
    with pytest.raises(backends.BackendUnavailableError, match="run on GPU tensors"):
        sad.fused_span_kl(*TENSORS, backend="triton")


def test_kernels_run_in_a_forked_child():
    """No thread pool of the parent is waited for: the child finishes."""
    code = (
        "import os, torch, sad\n"
        "x, ids = torch.randn(64, 5000), torch.ones(64, dtype=torch.long)\n"
        "a = sad.fused_span_kl(x, x.roll(1), ids)\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0 if torch.equal(sad.fused_span_kl(x, x.roll(1), ids, backend='cpu'), a) else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    # The op around the kernel calls PyTorch, whose own pool does not survive a fork: one thread for it, as in a worker.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", code], timeout=60, env=environment).returncode == 0
