"""Processes with a time limit. At the limit, a process ends together with all processes that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import IO, NamedTuple


class Outcome(NamedTuple):
    """How a process ended.

    Args:
        code: Its exit code, negative if a signal ended it. None if it was stopped at the limit.
        seconds: How long it ran.
    """

    code: int | None
    seconds: float


class Running:
    """A process in the background, in a process group of its own.

    Args:
        command: Program and arguments.
        log: File for its output.
        environment: Its environment variables.
    """

    def __init__(self, command: Sequence[str], log: IO[str], environment: Mapping[str, str]) -> None:
        self._begin = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )

    def wait(self, limit: float) -> Outcome:
        """Waits at most `limit` seconds, then stops the process and its children."""
        try:
            code = self._process.wait(timeout=max(limit, 0))
        except subprocess.TimeoutExpired:
            code = None
        self.stop()
        return Outcome(code, time.monotonic() - self._begin)

    def stop(self) -> None:
        """Ends every process of the group that still runs."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # all have ended
        self._process.wait()


def run(command: Sequence[str], limit: float, log: IO[str], environment: Mapping[str, str]) -> Outcome:
    """Runs a command for at most `limit` seconds. A program that does not exist counts as exit code 127."""
    begin = time.monotonic()
    try:
        return Running(command, log, environment).wait(limit)
    except OSError as error:
        log.write(f"{command[0]}: {error}\n")
        log.flush()
        return Outcome(127, time.monotonic() - begin)
