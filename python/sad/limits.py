"""A time limit for Python code of others, such as a chat template, in any thread."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator

_POLL_SECONDS = 0.5
_lock = threading.Lock()
_deadlines: dict[int, float] = {}  # thread -> the time at which it is interrupted
_watcher: threading.Thread | None = None


class TookTooLongError(Exception):
    """Code that was interrupted at its time limit."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `TookTooLongError` in the block if it runs longer. The check is made about twice per second.

    It interrupts Python code, also in an endless loop, but not a single long call of a C function.

    Args:
        seconds: The limit.
    """
    global _watcher
    thread = threading.get_ident()
    with _lock:
        _deadlines[thread] = time.monotonic() + seconds
        if _watcher is None:
            _watcher = threading.Thread(target=_watch, name="sad-time-limit", daemon=True)
            _watcher.start()
    try:
        yield
    finally:
        with _lock:
            _deadlines.pop(thread, None)


def _restart() -> None:
    """Forgets what the parent of a forked process was doing. Its watching thread does not exist here."""
    global _lock, _watcher
    _lock, _watcher = threading.Lock(), None
    _deadlines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart)


def _watch() -> None:
    while True:
        time.sleep(_POLL_SECONDS)
        now = time.monotonic()
        with _lock:  # a thread that has left its block is not in the table, so it is not interrupted
            for thread in [thread for thread, end in _deadlines.items() if now > end]:
                del _deadlines[thread]
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TookTooLongError))
