"""Clocks, and providers timed in turns.

The providers of a case run one after the other in every round, so that a machine that slows down slows all of them, and the
ratio of two is the median of the ratios of the rounds.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch


class Run(NamedTuple):
    """`prepare` is called before every `call` and not timed; nor, if `twice`, is the first of a round's two calls."""

    prepare: Callable[[], object]
    call: Callable[[], object]
    twice: bool = False


class WallClock:
    """Seconds by the wall, for work that is done when the call returns."""

    def __call__(self, call: Callable[[], object]) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin


class EventClock:
    """Seconds between two events on the device's stream, after a buffer of several times the L2 was written.

    Writing it evicts what the last call left in the L2, and keeps the device busy while the host enqueues the call.
    """

    def __init__(self, device: torch.device) -> None:
        size = max(256 << 20, 4 * torch.cuda.get_device_properties(device).L2_cache_size)
        self._flush = torch.empty(size, dtype=torch.uint8, device=device)
        self._device = device

    def __call__(self, call: Callable[[], object]) -> float:
        for _ in range(3):  # once empties the L2; thrice outlasts the host's work for one call
            self._flush.zero_()
        return self._between_events(call)

    def warm(self, run: Run, seconds: float) -> float:
        """Mean seconds of calls back to back, as many as take about `seconds` if one takes that long."""
        count = max(3, min(100, round(20e-3 / max(seconds, 1e-6))))
        run.prepare()
        run.call()

        def calls() -> None:
            for _ in range(count):
                run.call()

        return self._between_events(calls) / count

    def _between_events(self, call: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(self._device):
            begin.record()
            call()
            end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def clock_for(device: torch.device) -> WallClock | EventClock:
    return EventClock(device) if device.type == "cuda" else WallClock()


def time_in_turns(
    runs: dict[str, Run], clock: Callable[[Callable[[], object]], float], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every run in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    was_enabled = gc.isenabled()
    gc.disable()  # a collection inside a timed call would be that call's bad luck
    try:
        for _ in range(rounds):
            for name, run in runs.items():
                if run.twice:
                    run.prepare()
                    run.call()
                run.prepare()
                seconds[name].append(clock(run.call))
    finally:
        if was_enabled:
            gc.enable()
    return seconds


def speedups(seconds: dict[str, list[float]], baseline: str) -> dict[str, float]:
    """How many times faster than `baseline`, the median over the rounds; empty if it did not run."""
    if baseline not in seconds:
        return {}
    return {name: median(b / s for b, s in zip(seconds[baseline], own)) for name, own in seconds.items()}
