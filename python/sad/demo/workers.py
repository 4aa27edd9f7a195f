"""Processes that work side by side, with one thread each: small models are slower with two threads than on two cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

Result = TypeVar("Result")
Job = Callable[[Callable[[], None]], Result]  # called with a function that reports one finished unit

_POLL_SECONDS = 0.1
_finished: Any = None  # the queue of a worker


class Workers:
    """A context manager for processes that run jobs. They end with this process, however it ends.

    Args:
        count: Number of processes. With 0, the jobs run in this process, one after the other.
    """

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._units = context.SimpleQueue()
        self._pool = ProcessPoolExecutor(count, context, _start, (self._units,)) if count else None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._pool is None:
            return
        if kind is not None:
            for process in multiprocessing.active_children():
                process.kill()
        self._pool.shutdown(cancel_futures=True)

    def run(self, jobs: Sequence[Job[Result]], advance: Callable[[], None]) -> list[Result]:
        """Runs jobs side by side and returns their results in the same order.

        Args:
            jobs: Functions of a module, or partial ones, that take a function which reports one finished unit.
            advance: Called in this process for each finished unit.

        Raises:
            Exception: That of the first job that failed.
        """
        if self._pool is None:
            return [job(advance) for job in jobs]
        futures = [self._pool.submit(_run, job) for job in jobs]
        running = set(futures)
        while running:
            done, running = wait(running, _POLL_SECONDS, FIRST_COMPLETED)
            while not self._units.empty():
                self._units.get()
                advance()
            for future in done:
                future.result()
        return [future.result() for future in futures]


def _start(units: Any) -> None:
    import torch

    from sad import quiet

    global _finished
    _finished = units
    quiet.drop_irrelevant_messages()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the parent ends this one
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    torch.set_num_threads(1)
    quiet.quiet_libraries()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(128 + signal.SIGTERM)


def _run(job: Job[Result]) -> Result:
    return job(lambda: _finished.put(None))
