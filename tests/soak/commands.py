"""Runs a `sad` command in a forked process, so that it can be killed at any file operation and costs no imports."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SECONDS = 300  # no case needs a tenth of it on a machine that is not busy
# What a write to a file or folder looks like in Python's audit events; `open` counts for writing only.
_EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree", "os.link", "os.symlink")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Result(NamedTuple):
    """The exit code of a process (negative: its signal), what it wrote to stdout and stderr, and its seconds."""

    code: int
    said: str
    seconds: float

    def check(self, *codes: int) -> None:
        """Checks the exit code, and that no traceback was printed.

        Raises:
            AssertionError: The command ended otherwise.
        """
        shown = self.said[-3000:]
        assert self.code in codes, f"exit code {self.code} after {self.seconds:.1f} s instead of {codes}: {shown}"
        assert "Traceback" not in self.said, shown
        if self.code == 2:
            assert self.said.count("sad: ") == 1, f"not one message: {shown}"


def sad(*words: object, log: Path, before: Callable[[], None] | None = None) -> Result:
    """Runs `sad WORDS` in a forked process.

    Args:
        words: The arguments.
        log: File for stdout and stderr.
        before: Called in the process first, for example to arrange a kill.
    """

    def command() -> None:
        from sad.cli.main import main

        sys.argv = ["sad", *map(str, words)]
        main()

    return run(command, log=log, before=before)


def run(function: Callable[[], object], *, log: Path, before: Callable[[], None] | None = None) -> Result:
    """Runs a function in a forked process, which is killed after `SECONDS`."""
    start = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _in_child(function, log, before)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - start > SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"no end in {SECONDS} s: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(status)
    return Result(code, log.read_text(encoding="utf-8", errors="replace"), time.monotonic() - start)


def _in_child(function: Callable[[], object], log: Path, before: Callable[[], None] | None) -> None:
    code = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        if before is not None:
            before()
        function()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def at_operation(folder: Path, moment: int, act: Callable[[], None], *, once: bool = False) -> None:
    """Calls `act` at the nth operation of this process that changes a file below a folder, and at all later ones.

    Args:
        folder: The folder.
        moment: The number of the operation, from 1 on.
        act: What happens there.
        once: Whether it happens at this operation only.
    """
    below, seen = str(folder), 0

    def hook(event: str, values: tuple) -> None:
        nonlocal seen
        if event == "open":
            path, _, flags = values
            if not isinstance(flags, int) or not flags & _WRITES:
                return
        elif event in _EVENTS:
            path = values[0]
        else:
            return
        if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(below):
            seen += 1
            if seen == moment or (seen > moment and not once):
                act()

    sys.addaudithook(hook)
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        hook("os.truncate", (below,))
        flush(descriptor)

    os.fsync = fsync


def kill() -> None:
    """Ends this process as SIGKILL or a power cut does."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(number: int) -> Callable[[], None]:
    """Returns a function that raises this error of the system."""

    def act() -> None:
        raise OSError(number, os.strerror(number))

    return act
