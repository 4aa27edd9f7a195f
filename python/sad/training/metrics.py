"""Collects loss statistics, throughput and memory between two logs, without a device synchronization until they are read."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import TrainerCallback

from sad.losses import KindStats, SpanStats

try:
    import resource
except ImportError:  # Windows
    resource = None

_KINDS = SpanStats._fields
_COUNTS_ALLOCATIONS = ("cuda", "xpu")


class SpanMeter:
    """Sums `SpanStats` on the device."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, stats: SpanStats, valid: Tensor | None = None) -> None:
        """Adds the sums of one batch.

        Args:
            stats: The statistics of the batch.
            valid: Whether to add them, a bool on the device. None: yes.
        """
        sums = torch.stack([value for kind in stats for value in kind]).view(len(_KINDS), -1)
        sums = sums.to(_sum_dtype(sums.device))  # token counts exceed 2^24
        if valid is not None:
            sums = torch.where(valid, sums, 0)
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self, device: torch.device) -> Tensor:
        """Returns the sums (3, 5), one row per kind with the fields of `KindStats`, and resets them."""
        shape = (len(_KINDS), len(KindStats._fields))
        sums = torch.zeros(shape, dtype=_sum_dtype(device), device=device) if self._sums is None else self._sums
        self._sums = None
        return sums


class MeanMeter:
    """Sums means of batches on the device, and their weights.

    Args:
        size: Number of means, 1 for a scalar.
    """

    def __init__(self, size: int = 1) -> None:
        self._size = size
        self._sums: Tensor | None = None

    def add(self, total: Tensor, weight: Tensor | float = 1.0) -> None:
        """Adds sums (size,) or (), without their graph, and the weights by which the means divide them."""
        weight = torch.as_tensor(weight, device=total.device)
        sums = torch.stack([x.detach().to(_sum_dtype(total.device)).reshape(self._size) for x in (total, weight)])
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self, device: torch.device) -> Tensor:
        """Returns the sums and the weights (2, size), and resets them."""
        sums = torch.zeros((2, self._size), dtype=_sum_dtype(device), device=device) if self._sums is None else self._sums
        self._sums = None
        return sums


def means(sums: Tensor) -> list[float]:
    """Returns the means of `MeanMeter.take` (2, size), summed over the processes; NaN without a weight."""
    return [total / weight if weight else math.nan for total, weight in sums.T.tolist()]


class Throughput(TrainerCallback):
    """Counts tokens and training time.

    transformers' own token count synchronizes the device in every batch, and its speed includes evaluations.

    Args:
        device: The training device.
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
        """Adds the tokens of a training batch: the sum of its mask (B, T), so padding is excluded."""
        tokens = attention_mask.sum()
        self._tokens = tokens if self._tokens is None else self._tokens + tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the `with` block, an evaluation or a checkpoint, from the training time."""
        self._synchronize()
        paused = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            self._began += time.perf_counter() - paused

    def take(self) -> Tensor:
        """Returns tokens, seconds, and peak memory in bytes (3,) since the last call, and resets tokens and seconds."""
        now = time.perf_counter()
        seconds, self._began = now - self._began, now
        values = [0.0, seconds, peak_bytes(self._device)]
        taken = torch.tensor(values, dtype=_sum_dtype(self._device), device=self._device)
        if self._tokens is not None:
            taken[0] = self._tokens
        self._tokens = None
        return taken

    def _synchronize(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


def span_metrics(sums: Tensor) -> dict[str, float]:
    """Returns the means per token of each kind, by their names in the log. Synchronizes the device once.

    Args:
        sums: (3, 5) from `SpanMeter.take`, summed over the processes.

    Returns:
        For each kind that has tokens: `loss_<kind>` (nats per token, not weighted by lambda), `agreement_<kind>` (share of
        tokens with the teacher's argmax), `teacher_entropy_<kind>` and `student_entropy_<kind>` (nats), `tokens_<kind>`.
    """
    metrics: dict[str, float] = {}
    for kind, (loss, tokens, teacher_entropy, student_entropy, agreements) in zip(_KINDS, sums.tolist()):
        if tokens:
            metrics[f"loss_{kind}"] = loss / tokens
            metrics[f"agreement_{kind}"] = agreements / tokens
            metrics[f"teacher_entropy_{kind}"] = teacher_entropy / tokens
            metrics[f"student_entropy_{kind}"] = student_entropy / tokens
            metrics[f"tokens_{kind}"] = int(tokens)
    return metrics


def speed_metrics(taken: Tensor, supervised: float, tensor_parallel: int = 1) -> dict[str, float]:
    """Returns throughput and memory, by their names in the log. Synchronizes the device once.

    Args:
        taken: (P, 3), the result of `Throughput.take` in every process.
        supervised: Supervised tokens in the same time, of all processes.
        tensor_parallel: Number of processes that share each batch; `taken` counts its tokens that often.

    Returns:
        `tokens_per_second` (without padding) and `supervised_tokens_per_second`, of all processes, and `peak_memory_gib` of
        the process with the highest peak, if it is known.
    """
    rows = taken.tolist()
    seconds = max(row[1] for row in rows)
    tokens = sum(row[0] for row in rows) / tensor_parallel
    metrics = {"tokens_per_second": tokens / seconds, "supervised_tokens_per_second": supervised / seconds}
    peak = max(row[2] for row in rows)
    return metrics | ({"peak_memory_gib": peak / 2**30} if peak else {})


def peak_bytes(device: torch.device) -> int:
    """Returns the peak of a GPU's allocations since training began, or of the process's resident memory; 0 if unknown."""
    if device.type in _COUNTS_ALLOCATIONS:
        return torch.accelerator.max_memory_allocated(device)
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _sum_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
