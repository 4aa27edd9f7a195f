"""Memory of a forward and backward pass beyond its inputs, and the free memory of the machine."""

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


class MemoryUsage(NamedTuple):
    """Bytes beyond those allocated before the call.

    Attributes:
        peak: At the peak. None if the system cannot measure it.
        retained: Between forward and backward. None if the system cannot measure it.
    """

    peak: int | None
    retained: int | None


def measure_memory(forward: Callable[[], Tensor], backward: Callable[[Tensor], object], device: torch.device) -> MemoryUsage:
    """Returns the memory of one `backward(forward())`. All gradients must be None before the call."""
    if device.type == "cuda":
        return _from_gpu_allocator(forward, backward, device)
    try:
        return _from_resident_set(forward, backward)
    except (OSError, AttributeError, StopIteration):  # no Linux, no glibc, or a container that hides the counters
        return MemoryUsage(None, None)


def _from_gpu_allocator(
    forward: Callable[[], Tensor], backward: Callable[[Tensor], object], device: torch.device
) -> MemoryUsage:
    base = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    loss = forward()
    retained = torch.cuda.memory_allocated(device) - base
    backward(loss)
    return MemoryUsage(torch.cuda.max_memory_allocated(device) - base, retained)


def _from_resident_set(forward: Callable[[], Tensor], backward: Callable[[Tensor], object]) -> MemoryUsage:
    """Uses the process's resident set, whose peak the kernel records. PyTorch's CPU allocator has no statistics."""
    if extension.missing("cpu") is None:
        extension.load("cpu").Buffer.clear_cache()  # a buffer cached by an earlier call would not show in the peak
    base = _resident_bytes()
    (_PROCESS / "clear_refs").write_text("5")  # resets the recorded peak
    loss = forward()
    after = _resident_bytes()
    backward(loss)
    return MemoryUsage(_proc_bytes("status", "VmHWM") - base, max(after - base, 0))


def _resident_bytes() -> int:
    """Returns the resident set without freed memory, which could hide a new buffer or be counted as one."""
    ctypes.CDLL(None).malloc_trim(0)
    cached = _proc_bytes("smaps_rollup", "LazyFree")  # the `cpu` backend's cached buffer, which the system may reclaim
    return _proc_bytes("status", "VmRSS") - cached


def _proc_bytes(file: str, field: str) -> int:
    lines = (_PROCESS / file).read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def available_bytes() -> int | None:
    """Returns the free bytes of main memory, within the container's limit. None if the system does not report them."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return None
    free = next(int(line.split()[1]) << 10 for line in info.read_text().splitlines() if line.startswith("MemAvailable"))
    limit, used = (_CGROUP / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and (words := limit.read_text().strip()) != "max":
        free = min(free, int(words) - int(used.read_text()))
    return free
