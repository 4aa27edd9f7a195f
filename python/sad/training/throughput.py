"""How fast a training goes and how much memory it takes, from log to log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import TrainerCallback

try:
    import resource
except ImportError:  # on Windows
    resource = None

_COUNTS_ALLOCATIONS = ("cuda", "xpu")


class Throughput(TrainerCallback):
    """Counts tokens and seconds without waiting for the device; transformers' own count of input tokens reads it at every
    batch, and its speed is that of the whole training with its evaluations.

    Args:
        device: That trains.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._tokens: Tensor | None = None
        self._began = time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._tokens, self._began = None, time.perf_counter()
        if self._device.type in _COUNTS_ALLOCATIONS:
            torch.accelerator.reset_peak_memory_stats(self._device)

    def add(self, attention_mask: Tensor) -> None:
        """A batch (B, T) was trained; its padding, where the mask is 0, does not count."""
        tokens = attention_mask.sum()
        self._tokens = tokens if self._tokens is None else self._tokens + tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens here, an evaluation or the writing of a checkpoint, is no training time."""
        self._wait()  # what is still queued is
        paused = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            self._began += time.perf_counter() - paused

    def take(self) -> Tensor:
        """(3,): tokens and seconds since the last time, and the peak of memory in bytes; begins anew."""
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        dtype = torch.float32 if self._device.type == "mps" else torch.float64
        taken = torch.tensor([0.0, seconds, peak_bytes(self._device)], dtype=dtype, device=self._device)
        if self._tokens is not None:
            taken[0] = self._tokens
        self._tokens = None
        return taken

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


def speed_metrics(taken: Tensor, supervised: float, tensor_parallel: int = 1) -> dict[str, float]:
    """Names for a log. Waits for the device once.

    Args:
        taken: (P, 3), `Throughput.take` of every process.
        supervised: Tokens with a loss in the same time, of all processes.
        tensor_parallel: Processes that see the same tokens.

    Returns:
        `tokens_per_second` (without padding) and `supervised_tokens_per_second`, of all processes; `peak_memory_gib`, of
        the process that needs most, where it is known.
    """
    rows = taken.tolist()
    seconds = max(row[1] for row in rows)
    tokens = sum(row[0] for row in rows) / tensor_parallel
    metrics = {"tokens_per_second": tokens / seconds, "supervised_tokens_per_second": supervised / tensor_parallel / seconds}
    peak = max(row[2] for row in rows)
    return metrics | ({"peak_memory_gib": peak / 2**30} if peak else {})


def peak_bytes(device: torch.device) -> int:
    """Of a GPU's tensors since training began; elsewhere of the process's resident memory since it began. 0: unknown."""
    if device.type in _COUNTS_ALLOCATIONS:
        return torch.accelerator.max_memory_allocated(device)
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
