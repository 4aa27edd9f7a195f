"""Where a measurement was made: hardware, versions and commit, as columns of every row of a CSV."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

import torch

_ROOT = Path(__file__).resolve().parents[2]  # the check-out, where there is one
_PACKAGES = {"sad": "structured-agent-distillation", "triton": "triton", "liger": "liger-kernel", "trl": "trl"}


@functools.cache
def about(device: str | torch.device | None = None) -> dict[str, str]:
    """Hardware, versions and commit; what is not installed is empty.

    Args:
        device: Where the tensors are; by default the GPU if there is one.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    gpu = device.type == "cuda"
    return {
        "processor": torch.cuda.get_device_name(device) if gpu else _processor(),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": (torch.version.cuda or torch.version.hip or "") if gpu else "",
        **{name: _version(package) for name, package in _PACKAGES.items()},
        "commit": _commit(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=_ROOT).stdout.strip()
    except OSError:  # no git here
        return ""


def _commit() -> str:
    if not (_ROOT / "csrc").is_dir() or _git("rev-parse", "--show-toplevel") != str(_ROOT):
        return ""  # an installed copy; the repository around it, if any, is somebody else's
    return _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "-uno") else "")
