"""Memory: what a call needs beyond its inputs, what it keeps for the backward pass, and what is left of the machine's."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels.native import extension

_PROCESS = Path("/proc/self")
_CGROUP = Path("/sys/fs/cgroup")


class Usage(NamedTuple):
    """Bytes beyond what was there before: at the peak, and between forward and backward. None where not measurable."""

    peak: int | None
    retained: int | None


def usage(forward: Callable[[], Tensor], backward: Callable[[Tensor], object], device: torch.device) -> Usage:
    """The memory of one `backward(forward())`; gradients must be None before."""
    if device.type == "cuda":
        return _on_gpu(forward, backward, device)
    try:
        return _resident_set(forward, backward)
    except (OSError, AttributeError, StopIteration):  # no Linux, no glibc, or a container that hides the counters
        return Usage(None, None)


def _on_gpu(forward: Callable[[], Tensor], backward: Callable[[Tensor], object], device: torch.device) -> Usage:
    base = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    loss = forward()
    retained = torch.cuda.memory_allocated(device) - base
    backward(loss)
    return Usage(torch.cuda.max_memory_allocated(device) - base, retained)


def _resident_set(forward: Callable[[], Tensor], backward: Callable[[Tensor], object]) -> Usage:
    """By the process's resident set, whose peak the kernel keeps: the allocator of the CPU keeps no book."""
    if extension.missing("cpu") is None:
        extension.load("cpu").Buffer.clear_cache()  # what an earlier call left would be there already, and not show in the peak
    base = _resident()
    (_PROCESS / "clear_refs").write_text("5")  # the peak starts anew
    loss = forward()
    after = _resident()
    backward(loss)
    return Usage(_kilobytes("status", "VmHWM") - base, max(after - base, 0))


def _resident() -> int:
    """Without what malloc has freed and not yet returned, which would hide a buffer or pass for one."""
    ctypes.CDLL(None).malloc_trim(0)
    kept = _kilobytes("smaps_rollup", "LazyFree")  # by the `cpu` backend for its next call; the system may take it
    return _kilobytes("status", "VmRSS") - kept


def _kilobytes(file: str, field: str) -> int:
    lines = (_PROCESS / file).read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def available() -> int | None:
    """Bytes of main memory that can still be had; None where the system does not say."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    free = next(int(line.split()[1]) << 10 for line in info.read_text().splitlines() if line.startswith("MemAvailable"))
    limit, used = (_CGROUP / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and (words := limit.read_text().strip()) != "max":
        free = min(free, int(words) - int(used.read_text()))  # a container's own limit
    return free
