"""Jobs run side by side, keep their order, and leave no process behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import pytest

from sad.demo.workers import Workers


def count(advance: Callable[[], None], *, units: int) -> tuple[int, int]:
    import torch

    for _ in range(units):
        advance()
    return units, torch.get_num_threads()


def fail(advance: Callable[[], None]) -> None:
    raise ValueError("no such model")


def stay(advance: Callable[[], None]) -> None:
    print(os.getpid(), flush=True)
    advance()
    time.sleep(600)


def test_results_keep_the_order_of_the_jobs_and_every_unit_is_reported() -> None:
    seen: list[int] = []
    with Workers(2) as workers:
        found = workers.run([partial(count, units=units) for units in (300, 0, 2)], lambda: seen.append(1))
        assert found == [(300, 1), (0, 1), (2, 1)] and len(seen) == 302
        with pytest.raises(ValueError, match="no such model"):
            workers.run([fail], lambda: None)
    assert not multiprocessing.active_children()
    with Workers(0) as workers:
        assert [units for units, _ in workers.run([partial(count, units=3)], lambda: seen.append(1))] == [3]
    assert len(seen) == 305


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_processes_end_with_the_parent(number: int) -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start jobs that ignore it\n"
        "from tests.sad.demo.test_workers import stay; from sad.demo.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    with Workers(1) as workers:\n"
        "        workers.run([stay], lambda: None)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.send_signal(number)
        parent.wait(30)
    deadline = time.monotonic() + 30
    while _runs(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(worker)


def _runs(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
