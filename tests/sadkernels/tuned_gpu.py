"""A GPU that PyTorch seems to see, for tests of the tuning files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sadkernels import tuning
from sadkernels.tuning import Entry

H200 = {"name": "NVIDIA H200", "major": 9, "minor": 0, "multi_processor_count": 132, "L2_cache_size": 60 << 20}
H200 |= {"total_memory": 141 << 30}
DRIVER = "580.65.06"
CUDA = torch.device("cuda", 0)


def pretend(monkeypatch: pytest.MonkeyPatch, cache: Path, driver: str = DRIVER) -> None:
    """Lets `tuning` see an H200 and an empty cache folder."""
    monkeypatch.delenv("SAD_TUNING", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**H200))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(tuning, "_driver", lambda: driver)
    tuning.reload()


def entry(setting: str, dtype: str, vocab_size: int | None, **choice: object) -> Entry:
    """Returns a result whose choice is the candidate with these values."""
    (found,) = (candidate for candidate in tuning.CANDIDATES[setting] if candidate == choice)
    return Entry(setting, dtype, vocab_size, found, 1.5, 2.0)


def write(*entries: Entry, path: Path | None = None) -> Path:
    """Writes a tuning file for the GPU, in its place in the cache folder by default."""
    path = path or tuning.file_for(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tuning.to_json(tuning.gpu(0), list(entries), {"measured": "today"}))
    tuning.reload()
    return path


class SimulatedCard:
    """A GPU whose calls take the seconds of a cost model, on a clock of its own; see `sadkernels.bench.tune.Card`.

    Args:
        cost: Seconds of a call, from the stage and the choices by setting.
        compile_seconds: Seconds of a comparison with float64.
        wrong: Returns whether the kernel is wrong with these choices.
        slow_down: Returns a factor for the time of call number n.
    """

    def __init__(
        self,
        cost: Callable[[object, Mapping], float],
        *,
        compile_seconds: float = 0.0,
        wrong: Callable[[object, Mapping], bool] = lambda stage, choices: False,
        slow_down: Callable[[int], float] = lambda call: 1.0,
    ) -> None:
        self.now = 1000.0
        self.calls = 0
        self.checked: list[tuple[object, Mapping]] = []
        self._cost, self._compile_seconds, self._wrong, self._slow_down = cost, compile_seconds, wrong, slow_down

    def clock(self) -> float:
        return self.now

    def fault(self, stage: object, choices: Mapping) -> str | None:
        self.checked.append((stage, choices))
        self.now += self._compile_seconds
        return "error 37 times the rounding" if self._wrong(stage, choices) else None

    def seconds(self, stage: object, choices: Mapping) -> float:
        self.calls += 1
        took = self._cost(stage, choices) * self._slow_down(self.calls)
        self.now += took
        return took
