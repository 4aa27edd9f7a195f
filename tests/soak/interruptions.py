"""Attacks on running commands: kills, signals, errors of the file system, a clock that jumps, and a second process."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.soak.cases import Case, attack, carry_on
from tests.soak.commands import Result, at_operation, fail, kill, sad
from tests.soak.inputs import Task


def _attacked(case: Case, name: str, act: Callable[[], None], once: bool = False) -> tuple[Result, Task, Path]:
    task = case.inputs.tasks[name]
    out = case.folder / task.out
    moment = case.rng.randrange(1, OPERATIONS[name])
    result = sad(*task.start(out), log=case.log, before=lambda: at_operation(case.folder, moment, act, once=once))
    return result, task, out


OPERATIONS = {"train": 260, "cached": 260, "cache": 25, "collect": 16, "eval": 16, "inspect": 8}
# What a program meets beside a full disk: a quota, a failing disk, a file system that turned read-only, and so on.
_ERRORS = (errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE, errno.ESTALE)


def _kill(name: str) -> Callable[[Case], None]:
    def run_case(case: Case) -> None:
        result, task, out = _attacked(case, name, kill)
        result.check(0, -signal.SIGKILL)
        carry_on(case, task, out)

    return run_case


def _full(name: str) -> Callable[[Case], None]:
    def run_case(case: Case) -> None:
        result, task, out = _attacked(case, name, fail(errno.ENOSPC))
        result.check(0, 2)
        assert result.code == 0 or os.strerror(errno.ENOSPC) in result.said, result.said
        carry_on(case, task, out)

    return run_case


for _name in OPERATIONS:
    attack(f"SIGKILL at a file operation: {_name}")(_kill(_name))
    attack(f"ENOSPC at a file operation: {_name}")(_full(_name))


@attack("another error at a file operation")
def other_errors(case: Case) -> None:
    """The error comes once, or from then on."""
    name, number = case.rng.choice(list(OPERATIONS)), case.rng.choice(_ERRORS)
    result, task, out = _attacked(case, name, fail(number), once=case.rng.random() < 0.5)
    result.check(0, 2)
    assert result.code == 0 or os.strerror(number) in result.said, result.said
    carry_on(case, task, out)


@attack("SIGINT or SIGTERM at a random time")
def signalled(case: Case) -> None:
    name = case.rng.choice(("train", "cached", "cache", "collect", "eval", "inspect"))
    task, number = case.inputs.tasks[name], case.rng.choice((signal.SIGINT, signal.SIGTERM))
    out, delay = case.folder / task.out, case.rng.uniform(0.0, 2.0)
    twice = case.rng.random() < 0.3

    def before() -> None:
        me = os.getpid()

        def send() -> None:
            from sad import interrupts

            time.sleep(delay)
            while signal.getsignal(number) is not interrupts._on_signal:  # the first line of `main`
                time.sleep(0.001)
            sent.write_text(str(time.monotonic()))
            os.kill(me, number)
            if twice:
                time.sleep(case.rng.uniform(0.0, 0.3))
                os.kill(me, number)

        threading.Thread(target=send, daemon=True).start()

    sent = case.folder / "sent"
    result = sad(*task.start(out), log=case.log, before=before)
    ended = time.monotonic()
    result.check(0, 128 + number)
    if result.code:
        assert result.said.count("sad: stopped by") == 1, result.said
        limit = 60 if name in ("train", "cached") else 15  # far above 2 s, because the machine may be busy
        assert ended - float(sent.read_text()) < limit, f"{ended - float(sent.read_text()):.1f} s until the end"
    carry_on(case, task, out)


@attack("a clock that jumps")
def clock(case: Case) -> None:
    name = case.rng.choice(("train", "cached", "cache", "collect", "eval"))
    task = case.inputs.tasks[name]
    out, jumps = case.folder / task.out, random.Random(case.rng.random())

    def before() -> None:
        now = time.time
        time.time = lambda: now() + jumps.choice((-1e9, -3600.0, 0.0, 3600.0, 1e9))

    sad(*task.start(out), log=case.log, before=before).check(0)
    carry_on(case, task, out)


@attack("two processes on one output")
def two(case: Case) -> None:
    name = case.rng.choice(("train", "cached", "cache", "collect"))
    task = case.inputs.tasks[name]
    out = case.folder / task.out
    if name != "cache":
        case.inputs.half_done(name, out)
    results: list[Result] = []

    def one(number: int) -> None:
        results.append(sad(*task.again(out), log=case.folder / f"log{number}"))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(case.rng.uniform(0, 0.5))
    for thread in threads:
        thread.join()
    assert len(results) == 2, "a process did not end"
    for result in results:
        result.check(0, 2)
    assert any(result.code == 0 for result in results), results
    carry_on(case, task, out)
