"""Ctrl-C and SIGTERM: end a command within two seconds, and say what is kept and how to go on.

The first signal raises `Interrupted` in the main thread. If the main thread does not end in time, because it is inside a
long call of a library or joins a thread that waits for a server, a second thread prints the message and ends the process.
During `gently` the first signal only calls a function, so that a training can save a checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

GRACE_SECONDS = 1.5  # until the process ends without waiting for the main thread
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEFAULT_SIGNAL = int(signal.SIGTERM)  # of a process that stops because another one received a signal
_SAME_SECONDS = 1.0  # torchrun repeats a signal that the terminal has already sent to all processes
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


class Interrupted(BaseException):
    """A signal that ends the command. Its message says what is kept and how to go on.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 plus the number of the signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class _Process:
    """What the process does at a signal. The main thread and the watching thread share it."""

    def __init__(self) -> None:
        self.explain: Callable[[], str] | None = None
        self.gentle: Callable[[int], None] | None = None
        self.counts: dict[str, tuple[int, float]] = {}
        self.said = threading.Lock()  # taken by the thread that prints the message

    def ends(self, thread: str) -> bool:
        """Counts a signal that a thread has seen. Returns whether the process ends, not only the training step."""
        count, last = self.counts.get(thread, (0, -1e9))
        now = time.monotonic()
        repeated = count > 0 and now - last < _SAME_SECONDS and int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.counts[thread] = (count + (not repeated), now)
        return self.gentle is None or self.counts[thread][0] > 1

    def message(self, number: int) -> str:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        kept = "Finished files are kept. Run the command again." if self.explain is None else self.explain()
        return f"sad: stopped by {name}. {kept}"


_process = _Process()


def explain(kept: Callable[[], str] | None) -> None:
    """Sets the function that says what an interrupted command keeps and how to continue it. It may run in any thread."""
    _process.explain = kept


@contextlib.contextmanager
def gently(stop: Callable[[int], None]) -> Iterator[None]:
    """Lets the first signal call `stop` with its number instead of ending the command. A second one ends it.

    Args:
        stop: Called in any thread, more than once for one signal. It must only set a flag.
    """
    _process.counts.clear()
    _process.gentle = stop
    try:
        yield
    finally:
        _process.gentle = None


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handles the signals of a command. In another thread than the main one it does nothing.

    The process exits with 128 plus the number of the signal after one message on stderr.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _process
    _process = _Process()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {number: signal.signal(number, _on_signal) for number in _SIGNALS}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, _process), name="sad-signals", daemon=True)
    watcher.start()
    ended = False
    try:
        yield
    except Interrupted as stop:
        ended = True
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # a further signal must not break the message
        if _process.said.acquire(blocking=False):
            print(_process.message(stop.number), file=sys.stderr, flush=True)
        sys.exit(stop.exit_code)  # the watcher ends the process if threads do not let it end
    finally:
        signal.set_wakeup_fd(wakeup)
        writer.close()  # ends the watcher, unless it has seen a signal
        for number, handler in before.items() if not ended else ():
            signal.signal(number, handler)


def _on_signal(number: int, frame: object) -> None:
    gentle = _process.gentle
    if _process.ends("main") or gentle is None:
        raise Interrupted(number)
    gentle(number)


def _watch(reader: socket.socket, process: _Process) -> None:
    """Ends the process if the main thread does not do it in time. Python runs signal handlers in the main thread only."""
    while received := reader.recv(1):
        number = received[0]
        if number not in _SIGNALS:
            continue
        gentle = process.gentle
        if not process.ends("watcher") and gentle is not None:
            gentle(number)
            continue
        time.sleep(GRACE_SECONDS)
        if process.said.acquire(blocking=False):
            cursor = _SHOW_CURSOR if os.isatty(2) else b""
            with contextlib.suppress(Exception):
                os.write(2, cursor + f"\n{process.message(number)}\n".encode("utf-8", "backslashreplace"))
        os._exit(128 + number)


def _forget_signals() -> None:
    """Restores the default signals in a forked process, such as a worker of a data loader."""
    if signal.getsignal(signal.SIGINT) is _on_signal:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_signals)
