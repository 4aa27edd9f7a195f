"""The other processes of a run: what happens if one ends, and how a run resumes on another number of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

from sad.errors import InputError, LostProcessError

_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited")


def launched_processes() -> int:
    """Returns the number of processes that a launcher (torchrun, accelerate launch, deepspeed) has started."""
    return int(os.environ.get("WORLD_SIZE") or 1)


@contextmanager
def reports_lost_process() -> Iterator[None]:
    """Turns the errors of collectives that fail because another process has ended into one message.

    Raises:
        LostProcessError: Another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        failed = isinstance(error, distributed.DistError) or any(part in text.lower() for part in _LOST)
        if not failed or not distributed.is_initialized():
            raise
        first_line = text.strip().splitlines()[0][:200]
        raise LostProcessError(
            f"process {distributed.get_rank()} of {distributed.get_world_size()}",
            "all processes until the end of the training",
            f"a connection that another one has closed ({first_line})",
            "See the message of the process that ended first. Then continue from the last checkpoint with --resume.",
        ) from error


def accumulation_after_move(before: tuple[int, int, int], batch: int, accumulation: int, processes: int) -> tuple[int, str]:
    """Returns the accumulation with which a run on another number of processes has the same steps, and what changed.

    The order of the data depends on the trajectories per step, not on how processes share them.

    Args:
        before: Processes, trajectories per batch and accumulated batches of the run so far.
        batch: Trajectories per batch and process now (`per_device_train_batch_size`).
        accumulation: Accumulated batches now (`gradient_accumulation_steps`).
        processes: Processes now.

    Returns:
        The accumulation, and a message; without a change the message is empty.

    Raises:
        InputError: No accumulation gives the same number of trajectories per step.
    """
    if before == (processes, batch, accumulation):
        return accumulation, ""
    old, new = before[0] * before[1] * before[2], processes * batch * accumulation
    sizes = "{} processes x {} trajectories x {} accumulated batches".format
    was = sizes(*before)
    if processes == before[0] and old != new:
        now = sizes(processes, batch, accumulation)
        return accumulation, f"{now} instead of {was}: other trajectories per step, so the order of the data differs"
    if old != new:
        if old % (processes * batch):
            expected = f"a divisor of {old} // {batch}, because a step of this run has {old} trajectories ({was})"
            remedy = "Start as many processes as before, or choose another --per-device-train-batch-size."
            raise InputError("the number of processes", expected, str(processes), remedy)
        accumulation = old // (processes * batch)
    now = sizes(processes, batch, accumulation)
    return accumulation, (
        f"{now} instead of {was}: the same {old} trajectories in every step, in the same order. Dropout, if any, draws "
        "other random numbers"
    )
