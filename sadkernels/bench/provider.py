"""A way to compute a loss, as the harness needs to know it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels import backends
from sadkernels.bench.cases import Case
from sadkernels.bench.problem import Problem

BASELINE = "pytorch"


class Provider(NamedTuple):
    """One way to compute the mean loss of the supervised rows, and its gradient.

    Attributes:
        name: As in the CSV.
        loss: From a problem to the scalar loss.
        missing: Why it cannot run a case on a device, in one line; None if it can.
        logits_buffers: How many float32 buffers of the logits' shape it needs at the peak, generously; decides what is tried
            on a CPU, where a process that asks for too much is killed.
        in_place: Overwrites the student's logits.
        too_slow: Why quick runs leave it out, in one line; None if they don't.
    """

    name: str
    loss: Callable[[Problem], Tensor]
    missing: Callable[[Case, torch.device], str | None] = lambda case, device: None
    logits_buffers: float = 6
    in_place: bool = False
    too_slow: str | None = None

    @property
    def ours(self) -> bool:
        return self.name.startswith("sad-")

    def bytes_needed(self, case: Case) -> int:
        """An upper estimate of what it allocates, gradients included."""
        buffers = int(4 * self.logits_buffers * case.rows * case.vocab)
        return buffers + (0 if case.hidden is None else 2 * case.input_bytes)


def missing_backend(case: Case, device: torch.device, backend: str, op: str) -> str | None:
    """Why one of ours cannot run a case of the kernel `op`; None if it can."""
    if backend == "cpu" and device.type != "cpu":
        return "it runs on CPUs"
    if backend in ("cuda", "triton") and device.type == "cpu":
        return "it runs on GPUs"  # Triton's interpreter is no subject of a benchmark
    return backends.why_not(backend, op, device, case.torch_dtype)
