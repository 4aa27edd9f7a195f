"""Clocks for CPU and GPU, round-robin timing of several calls, and the copy bandwidth of a device.

Each round runs every provider once. If the machine slows down, all providers slow down, and a ratio of two providers is the
median of its per-round ratios.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch

_HEAD_START = 1.5e-3  # seconds; the host launches the kernels of one call in about 0.5 ms
_MOST_WARM_CALLS = 20  # the queue of a stream holds about 1000 kernels
_CALIBRATION_CYCLES = 10_000_000  # about 5 ms


class TimedCall(NamedTuple):
    """A call to time.

    Attributes:
        prepare: Runs before every call and is not timed.
        call: The timed function.
        warmup: Whether each round first runs `prepare` and `call` once untimed.
    """

    prepare: Callable[[], object]
    call: Callable[[], object]
    warmup: bool = False


class WallClock:
    """Measures a call in seconds of wall-clock time, for work that is complete when the call returns."""

    def __call__(self, call: Callable[[], object]) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin


class EventClock:
    """Measures a call in seconds between two events on the device's stream, with a cold L2 cache.

    The device first overwrites a buffer of several times the L2's size, which evicts the data of the previous call. Then it
    sleeps while the host queues the kernels of this call. Without the sleep, the time of a call of many short kernels would
    be the time that the host needs to launch them.
    """

    def __init__(self, device: torch.device) -> None:
        size = max(256 << 20, 4 * torch.cuda.get_device_properties(device).L2_cache_size)
        self._flush = torch.empty(size, dtype=torch.uint8, device=device)
        self._device = device
        self._between_events(lambda: torch.cuda._sleep(10 * _CALIBRATION_CYCLES))  # an idle GPU has a low clock at first
        seconds = self._between_events(lambda: torch.cuda._sleep(_CALIBRATION_CYCLES))
        self._cycles_per_second = _CALIBRATION_CYCLES / seconds

    def __call__(self, call: Callable[[], object]) -> float:
        self._flush.zero_()
        return self._between_events(call, _HEAD_START)

    def warm(self, timed: TimedCall, seconds: float) -> float:
        """Returns the mean seconds of back-to-back calls, without flushing the L2.

        Args:
            timed: The call. `prepare` runs once, before all calls.
            seconds: The expected time of one call; it sets the number of calls.
        """
        count = max(3, min(_MOST_WARM_CALLS, round(20e-3 / max(seconds, 1e-6))))
        timed.prepare()
        timed.call()

        def calls() -> None:
            for _ in range(count):
                timed.call()

        return self._between_events(calls, _HEAD_START * count) / count

    def _between_events(self, call: Callable[[], object], asleep: float = 0.0) -> float:
        """Returns the seconds of a call that is queued while the device sleeps for `asleep` seconds."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(self._device):
            if asleep:
                torch.cuda._sleep(round(asleep * self._cycles_per_second))
            begin.record()
            call()
            end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def clock_for(device: torch.device) -> WallClock | EventClock:
    """Returns the clock for a device."""
    return EventClock(device) if device.type == "cuda" else WallClock()


def time_round_robin(
    calls: dict[str, TimedCall], clock: Callable[[Callable[[], object]], float], rounds: int
) -> dict[str, list[float]]:
    """Returns the seconds of every call in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    was_enabled = gc.isenabled()
    gc.disable()  # a garbage collection inside a timed call would count against that call
    try:
        for _ in range(rounds):
            for name, timed in calls.items():
                if timed.warmup:
                    timed.prepare()
                    timed.call()
                timed.prepare()
                seconds[name].append(clock(timed.call))
    finally:
        if was_enabled:
            gc.enable()
    return seconds


def speedups(seconds: dict[str, list[float]], baseline: str) -> dict[str, float]:
    """Returns each call's speed-up over `baseline`, the median over the rounds. Empty if `baseline` did not run."""
    if baseline not in seconds:
        return {}
    return {name: median(b / s for b, s in zip(seconds[baseline], own)) for name, own in seconds.items()}


def copy_bandwidth(device: torch.device, size: int | None = None) -> float:
    """Returns the bytes per second that a large copy reads and writes.

    Args:
        device: The device to measure.
        size: Bytes of the copied tensor. Default: 256 MiB on a CPU, 1 GiB on a GPU.
    """
    elements = (size or ((1 << 30) if device.type == "cuda" else (256 << 20))) // 4
    source, target = (torch.ones(elements, device=device) for _ in range(2))
    timed = TimedCall(lambda: None, lambda: target.copy_(source))
    return 8 * elements / min(time_round_robin({"copy": timed}, clock_for(device), rounds=7)["copy"])
