"""Collects the facts that `sad doctor` shows, as plain data for tables and for JSON."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from sadkernels import backends, selftest, tuning
from sadkernels.native import extension

REQUIRED = (
    "torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "tqdm", "fsspec", "typer", "rich", "jinja2",
    "pyyaml",
)  # fmt: skip
OPTIONAL = {  # package: what uses it
    "triton": "the triton backend",
    "peft": "LoRA students",
    "bitsandbytes": "quantized teachers",
    "gguf": "models in GGUF files",
    "openai": "models behind a URL",
    "deepspeed": "ZeRO",
    "pyarrow": "parquet files",
    "alfworld": "the environment alfworld-official",
    "bm25s": "the environment webshop",
    "rapidfuzz": "the environment webshop",
    "trl": "sad.integrations.trl, comparison in sad bench",
    "matplotlib": "plots of sad bench",
    "liger-kernel": "comparison in sad bench",
}
SECONDS = 5.0  # limit of the self-test per backend and op; no case starts after it


def packages() -> dict[str, dict[str, str | None]]:
    """Returns the version of every package that `sad` uses (None: not installed), and the use of optional packages."""
    found: dict[str, dict[str, str | None]] = {"sad": {"version": _version("structured-agent-distillation")}}
    found["python"] = {"version": platform.python_version()}
    found |= {name: {"version": _version(name)} for name in REQUIRED}
    return found | {name: {"version": _version(name), "for": use} for name, use in OPTIONAL.items()}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def hardware() -> dict[str, Any]:
    """Returns processor, threads, and the GPUs that PyTorch and the driver see."""
    from sadkernels.bench.record import machine_info

    gpus = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        capability, memory = f"{card.major}.{card.minor}", round(card.total_memory / 2**30, 1)
        about = {"name": card.name, "capability": capability, "memory_gib": memory, "tuning": tuning.status(index)}
        gpus.append(about)
    return {
        "system": platform.platform(),
        "processor": machine_info("cpu")["processor"],
        "threads": torch.get_num_threads(),
        "torch_cuda": torch.version.cuda or torch.version.hip,
        "gpus": gpus,
        "nvidia_smi": _lines("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
    }


def builds() -> dict[str, Any]:
    """Returns the compilers, and the targets of the compiled extensions (None: not found or not built)."""
    cpu, cuda = _loaded("cpu"), _loaded("cuda")
    compiler, nvcc = shutil.which(os.environ.get("CXX", "c++")), _nvcc()
    return {
        "compiler": compiler and f"{compiler} ({next(iter(_lines(compiler, '--version')), 'no answer')})",
        "nvcc": nvcc and f"{nvcc} ({next((x for x in _lines(nvcc, '--version') if 'release' in x), 'no answer')})",
        "cpu_instruction_sets": cpu and list(cpu.supported_isas()),
        "cuda_architectures": cuda and list(cuda.architectures()),
        "cuda_runtime": cuda and _cuda_version(cuda.runtime_version()),
        "cuda_driver": cuda and _cuda_version(cuda.driver_version()),
        "cuda_emulated": cuda and cuda.emulated(),
    }


def _loaded(name: str) -> ModuleType | None:
    return None if extension.missing(name) else extension.load(name)


def _cuda_version(number: int) -> str | None:
    """Formats CUDA's version number: 13000 is 13.0. Returns None for 0, which means no driver."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _nvcc() -> str | None:
    """Returns the path of nvcc, searched as the build does."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for path in (*(Path(home) / "bin" / "nvcc" for home in homes), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if path and os.access(path, os.X_OK):
            return str(path)
    return None


def _lines(*command: str) -> list[str]:
    """Returns the lines that a program prints. Empty if the program is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def checked_backends(test: bool) -> Iterator[dict[str, Any]]:
    """Yields for every op and backend why it cannot run here, or the result of its self-test."""
    for op in selftest.OPS:
        for backend in backends.PACKAGES:
            gpu = torch.cuda.is_available() and backend != "cpu"
            device = torch.device("cuda" if gpu else "cpu")
            reason = backends.why_not(backend, op, device)
            row = {"op": op, "backend": backend, "device": str(device), "why_not": reason, "self_test": None}
            if test and reason is None:
                row["self_test"] = _self_test(op, backend, device)
            yield row


def _self_test(op: str, backend: str, device: torch.device) -> dict[str, Any]:
    outcome = selftest.run(selftest.quick_cases(op), backend, device, seconds=SECONDS)
    return {
        "passed": outcome.passed,
        "cases": outcome.cases,
        "ran": outcome.ran,
        "largest_error": outcome.largest_error if math.isfinite(outcome.largest_error) else None,
        "seconds": round(outcome.seconds, 2),
        "failures": outcome.failures,
    }


def healthy(rows: list[dict[str, Any]]) -> bool:
    """Returns whether every self-test that ran has passed."""
    return all(row["self_test"] is None or row["self_test"]["passed"] for row in rows)
