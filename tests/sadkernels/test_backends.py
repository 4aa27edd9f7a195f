"""The choice of the backend, and the error if a backend cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import sad
from sadkernels import backends
from sadkernels.native import extension
from sadkernels.native.cuda import device as cuda_device

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
TENSORS = (torch.randn(2, 5), torch.randn(2, 5), torch.tensor([1, 2]))


def test_the_cpu_extension_is_built():
    """A missing extension must fail here and not fall back to `reference` silently."""
    assert extension.missing("cpu") is None
    assert "portable" in extension.load("cpu").supported_isas()


def test_auto_uses_the_kernels():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.resolve("auto", "span_kl", CPU, torch.float32, torch.bfloat16) == "cpu"
        assert backends.resolve("auto", "span_kl", CPU, torch.float64) == "reference"


@pytest.fixture
def without_extension(monkeypatch):
    """A machine on which the extension was not built."""
    backends._warn_once.cache_clear()
    monkeypatch.setattr(extension, "missing", lambda name: "it was not built; install a C++17 compiler and reinstall")
    yield
    backends._warn_once.cache_clear()


def test_auto_falls_back_to_reference_with_one_warning(without_extension):
    with pytest.warns(RuntimeWarning, match=r"install a C\+\+17 compiler"):
        sad.fused_span_kl(*TENSORS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sad.fused_span_kl(*TENSORS)


def test_a_named_backend_never_falls_back(without_extension):
    with pytest.raises(backends.BackendUnavailableError, match="backend='cpu' cannot run span_kl: it was not built"):
        sad.fused_span_kl(*TENSORS, backend="cpu")


def test_named_backend_with_unsupported_tensors():
    double = [x.double() if x.is_floating_point() else x for x in TENSORS]
    with pytest.raises(backends.BackendUnavailableError, match=r"no torch.float64 kernel"):
        sad.fused_span_kl(*double, backend="cpu")
    assert "takes cpu tensors, these are on cuda" in backends.why_not("cpu", "span_kl", torch.device("cuda"))


def test_unknown_instruction_set(monkeypatch):
    monkeypatch.setenv("SAD_CPU_ISA", "sse9")
    with pytest.raises(ValueError, match=r"SAD_CPU_ISA: expected one of .*'portable', got 'sse9'"):
        sad.fused_span_kl(*TENSORS, backend="cpu")


def test_cuda_reports_what_is_missing_for_cpu_tensors(monkeypatch):
    monkeypatch.delenv("SAD_CUDA_EMULATED", raising=False)
    reason = backends.why_not("cuda", "span_kl", CPU)
    if extension.missing("cuda"):
        assert "with the CUDA toolkit (nvcc) on the PATH" in reason
        return
    assert reason.startswith("it takes cuda tensors, these are on cpu; ")
    if not torch.cuda.is_available():
        assert "no NVIDIA driver" in reason or "no GPU" in reason or "built without CUDA" in reason
        assert backends.why_not("cuda", "span_kl", torch.device("cuda")) in reason
    with pytest.raises(backends.BackendUnavailableError, match="backend='cuda' cannot run span_kl: it takes cuda"):
        sad.fused_span_kl(*TENSORS, backend="cuda")


class Kernels:
    """A CUDA extension on a machine with this driver, these devices and these compiled architectures."""

    def __init__(self, driver=13000, runtime=13000, devices=1, architectures=("sm_80", "sm_90", "compute_90")):
        self.driver_version, self.runtime_version, self.device_count = lambda: driver, lambda: runtime, lambda: devices
        self.architectures, self.emulated = lambda: list(architectures), lambda: False


@pytest.mark.parametrize(
    ("kernels", "reason"),
    [
        (Kernels(driver=0), "no NVIDIA driver"),
        (Kernels(driver=12080), "driver is for CUDA 12.8 and older, the kernels were built with 13.0; update the driver"),
        (Kernels(devices=0), "shows no GPU; see `nvidia-smi`"),
    ],
    ids=["no driver", "old driver", "no GPU"],
)
def test_machines_on_which_cuda_cannot_run(monkeypatch, kernels, reason):
    monkeypatch.setattr(cuda_device, "load", lambda name: kernels)
    cuda_device._no_device.cache_clear()
    assert reason in cuda_device.unusable(torch.device("cuda", 0))
    cuda_device._no_device.cache_clear()


@pytest.fixture
def no_code(monkeypatch):
    """Returns why kernels have no code for a GPU of a compute capability."""

    def reason(kernels: Kernels, capability: tuple[int, int]) -> str | None:
        monkeypatch.setattr(cuda_device, "load", lambda name: kernels)
        cuda_device._no_code.cache_clear()
        return cuda_device._no_code(capability)

    yield reason
    cuda_device._no_code.cache_clear()


@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        ((8, 0), None),
        ((8, 6), None),  # newer, with the same major version
        ((9, 0), None),
        ((12, 0), None),  # from the PTX
        ((7, 5), "needs compute capability 8.0 or newer, this GPU has 7.5"),
    ],
)
def test_architectures_with_code(no_code, capability, reason):
    found = no_code(Kernels(), capability)
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize(
    ("architecture", "runs_on", "not_on"),
    [
        ("sm_100a", (10, 0), (10, 3)),
        ("compute_90a", (9, 0), (10, 0)),
        ("sm_100f", (10, 3), (12, 0)),
        ("compute_100f", (10, 3), (12, 0)),
    ],
)
def test_code_for_one_architecture_or_family(no_code, architecture, runs_on, not_on):
    kernels = Kernels(architectures=[architecture])
    assert no_code(kernels, runs_on) is None
    assert "reinstall with TORCH_CUDA_ARCH_LIST" in no_code(kernels, not_on)


def test_ptx_of_a_toolkit_that_the_driver_does_not_know(no_code):
    kernels = Kernels(driver=12040, runtime=12080)
    assert no_code(kernels, (9, 0)) is None  # machine code
    assert "made with CUDA 12.8, and the driver is for CUDA 12.4; update the driver" in no_code(kernels, (12, 0))


def test_an_architecture_without_code(no_code):
    kernels = Kernels(architectures=["sm_86", "sm_90"])
    for capability in ((8, 0), (10, 0)):
        wanted = ".".join(map(str, capability))
        assert f"this GPU has compute capability {wanted}; reinstall with TORCH_CUDA_ARCH_LIST={wanted}" in (
            no_code(kernels, capability)
        )


def test_a_missing_emulation_library(monkeypatch):
    monkeypatch.setenv("SAD_CUDA_EMULATED", "/nowhere/_cuda.so")
    assert "/nowhere/_cuda.so" in backends.why_not("cuda", "span_kl", CPU)


def test_the_emulation_runs_on_cpu_tensors_only(emulated_cuda):
    assert backends.why_not("cuda", "span_kl", CPU, torch.float32) is None
    assert "takes cpu tensors" in backends.why_not("cuda", "span_kl", torch.device("cuda"))
    assert backends.resolve("auto", "span_kl", CPU, torch.float32) == "cpu"  # auto never chooses the emulation


def test_the_auto_table():
    """The first row that matches decides, and a row without dtypes matches any."""
    wide, narrow = (torch.float32,), (torch.bfloat16,)
    table = (
        backends.AutoRule("cuda", "span_kl", narrow, None, ("triton", "cuda"), "a test"),
        backends.AutoRule("cuda", "span_kl", None, None, ("cuda", "triton"), "a test"),
        backends.AutoRule("cuda", None, None, None, ("cuda",), "a test"),
    )
    gpu = torch.device("cuda")
    assert backends.auto_order("span_kl", gpu, narrow, table) == ("triton", "cuda")
    for dtypes in (wide, ()):
        assert backends.auto_order("span_kl", gpu, dtypes, table) == ("cuda", "triton")
    assert backends.auto_order("span_ids", gpu, rules=table) == ("cuda",)
    assert backends.auto_order("span_ids", CPU, rules=table) == ()


def test_every_row_of_the_auto_table_names_its_source():
    for rule in backends.AUTO_RULES:
        assert set(rule.backends) <= set(backends.PACKAGES) and rule.source
        if rule.source.startswith("benchmarks/"):
            assert (ROOT / rule.source).is_file()


def test_the_backend_is_resolved_once_per_call(monkeypatch):
    """In the public function; forward and backward use the result."""
    calls, why_not = [], backends.why_not
    monkeypatch.setattr(backends, "why_not", lambda *args: (calls.append(args[0]), why_not(*args))[1])
    student = TENSORS[0].clone().requires_grad_()
    sad.fused_span_kl(student, *TENSORS[1:]).backward(torch.tensor(2.0))
    assert calls == ["cpu"]


def test_triton_needs_a_gpu_outside_the_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if reason := backends._missing("triton", "span_kl"):
        pytest.skip(reason)
    with pytest.raises(backends.BackendUnavailableError, match="run on GPU tensors"):
        sad.fused_span_kl(*TENSORS, backend="triton")


def test_kernels_run_in_a_forked_child():
    """The child does not wait for a thread pool of the parent."""
    code = (
        "import os, torch, sad\n"
        "x, ids = torch.randn(64, 5000), torch.ones(64, dtype=torch.long)\n"
        "a = sad.fused_span_kl(x, x.roll(1), ids)\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0 if torch.equal(sad.fused_span_kl(x, x.roll(1), ids, backend='cpu'), a) else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    # The op calls PyTorch, whose thread pool does not survive a fork. It gets one thread, as in a DataLoader worker.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", code], timeout=60, env=environment).returncode == 0
