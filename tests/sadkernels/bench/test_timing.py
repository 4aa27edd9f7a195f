"""The clock of a GPU: what it queues, and in which order. A stand-in for `torch.cuda` records the calls."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from sadkernels.bench import timing
from sadkernels.bench.timing import EventClock, TimedCall

CYCLES_PER_SECOND = 2e9


@pytest.fixture
def queue(monkeypatch) -> list[str]:
    """Returns the names of the operations that were queued on the stream since the last event pair ended."""
    queued: list[str] = []
    slept = [0]

    class Event:
        def __init__(self, enable_timing):
            self.number = None

        def record(self):
            queued.append("event")

        def synchronize(self):
            pass

        def elapsed_time(self, end):  # milliseconds; the queue only slept while the clock was calibrated
            return 1e3 * slept[0] / CYCLES_PER_SECOND

    def sleep(cycles):
        slept[0] = cycles
        queued.append(f"sleep {1e3 * cycles / CYCLES_PER_SECOND:g} ms")

    stand_in = SimpleNamespace(
        Event=Event,
        _sleep=sleep,
        device=lambda device: nullcontext(),
        get_device_properties=lambda device: SimpleNamespace(L2_cache_size=1),
    )
    monkeypatch.setattr(timing.torch, "cuda", stand_in)
    return queued


def test_the_device_sleeps_while_the_host_launches(queue, monkeypatch):
    """Otherwise the time of many short kernels would be the host's time to launch them."""
    clock = EventClock(torch.device("cpu"))
    queue.clear()
    monkeypatch.setattr(clock._flush, "zero_", lambda: queue.append("flush"), raising=False)
    clock(lambda: queue.append("call"))
    assert queue == ["flush", "sleep 1.5 ms", "event", "call", "event"]
    queue.clear()
    clock.warm(TimedCall(lambda: queue.append("prepare"), lambda: queue.append("call")), 5e-3)
    assert queue == ["prepare", "call", "sleep 6 ms", "event", *["call"] * 4, "event"]


def test_the_time_is_that_between_the_events(queue):
    clock = EventClock(torch.device("cpu"))
    assert clock._cycles_per_second == pytest.approx(CYCLES_PER_SECOND)
    assert clock(lambda: timing.torch.cuda._sleep(4_000_000)) == pytest.approx(2e-3)
