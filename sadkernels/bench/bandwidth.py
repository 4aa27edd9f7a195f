"""Bytes that had to move, and how fast this machine copies."""

from __future__ import annotations

import torch

from sadkernels.bench.cases import Case
from sadkernels.bench.timing import Run, clock_for, time_in_turns


def moved_bytes(case: Case) -> int | None:
    """The floor of forward and backward from logits, in bytes; None from hidden states, where arithmetic is the bound.

    A supervised row is read on both sides, or on the student's alone where the teacher's is a list, and its gradient
    written once: 3 V e, or 2 V e and the list. An unsupervised row is never read, and its gradient is V e of zeros, which
    are written in place too, over the logits.
    """
    if case.hidden is not None:
        return None
    row = case.vocab * case.torch_dtype.itemsize
    of_supervised = 2 * row + 12 * case.listed if case.listed else 3 * row
    return of_supervised * case.supervised_rows + row * (case.rows - case.supervised_rows)


def copy_bandwidth(device: torch.device, size: int | None = None) -> float:
    """Bytes per second that a large copy reads and writes.

    Args:
        device: Where.
        size: Bytes of the tensor that is copied; by default 256 MiB on a CPU and 1 GiB on a GPU.
    """
    elements = (size or ((1 << 30) if device.type == "cuda" else (256 << 20))) // 4
    source, target = (torch.ones(elements, device=device) for _ in range(2))
    run = Run(lambda: None, lambda: target.copy_(source))
    return 8 * elements / min(time_in_turns({"copy": run}, clock_for(device), rounds=7)["copy"])
