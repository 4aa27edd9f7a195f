"""Attacks by a second user: root and `nobody` share a folder. Only root can run them."""

from __future__ import annotations

import codecs
import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.soak.cases import Case, NotPossible, attack, carry_on, check_result
from tests.soak.commands import Result, at_operation, kill, sad
from tests.soak.inputs import Task
from tests.soak.interruptions import OPERATIONS

NOBODY = 65534
_UMASKS = (0o000, 0o002, 0o022, 0o077)
_SHARED = ("train", "cached", "cache", "collect", "eval")


@attack("two users: one continues what the other began")
def continued(case: Case) -> None:
    """The first is killed. The second continues with the right result, or is refused with one message; root can continue."""
    task, out = _shared(case)
    first, second = case.rng.choice(((0, NOBODY), (NOBODY, 0)))
    moment = case.rng.randrange(1, OPERATIONS[task.name])
    stop = lambda: at_operation(out.parent, moment, kill)  # noqa: E731
    _as_user(case, first, task, task.start(out), case.log, stop).check(0, -signal.SIGKILL)
    for user in (second, first):
        if task.finished(out):
            break
        begun = task.begun(out) or any(out.glob("*"))
        result = _as_user(case, user, task, task.again(out) if begun else task.start(out), case.log)
        result.check(0, 2)
        if result.code == 0:
            check_result(case, task, out)
    carry_on(case, task, out)


@attack("two users: both write at once")
def at_once(case: Case) -> None:
    task, out = _shared(case)
    results: dict[int, Result] = {}

    def one(user: int) -> None:
        results[user] = _as_user(case, user, task, task.start(out), case.folder / f"log{user}")

    threads = [threading.Thread(target=one, args=(user,)) for user in (0, NOBODY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2, "a process did not end"
    for result in results.values():
        result.check(0, 2)
    assert any(result.code == 0 for result in results.values()), results
    carry_on(case, task, out)


@attack("two users: one reads what the other made")
def read_only(case: Case) -> None:
    """The models, the data and the cache belong to root and cannot be changed."""
    _needs_root()
    task = case.inputs.tasks[case.rng.choice(_SHARED)]
    out = case.folder / "own" / task.out
    out.parent.mkdir()
    os.chown(out.parent, NOBODY, NOBODY)
    _as_user(case, NOBODY, task, task.start(out), case.log).check(0)
    check_result(case, task, out)


def _shared(case: Case) -> tuple[Task, Path]:
    """Returns a command and its output in a folder that all users may write to, as /tmp or as a group's folder."""
    _needs_root()
    task = case.inputs.tasks[case.rng.choice(_SHARED)]
    folder = case.folder / "shared"
    folder.mkdir()
    folder.chmod(case.rng.choice((0o777, 0o1777)))
    return task, folder / task.out


def _needs_root() -> None:
    if os.geteuid() != 0:
        raise NotPossible("only root can become another user")


def _as_user(
    case: Case, user: int, task: Task, words: list[str], log: Path, then: Callable[[], None] | None = None
) -> Result:
    """Runs `sad WORDS` as a user with a random umask.

    The command first runs once as root with another output, because `nobody` may not import from root's folders.
    """
    umask, warm = case.rng.choice(_UMASKS), case.folder / f"warm{user}"
    warm.mkdir(exist_ok=True)

    def before() -> None:
        from sad.cli.main import main

        if user:
            arguments = sys.argv
            sys.argv = ["sad", *task.start(warm / task.out)]
            with contextlib.suppress(SystemExit):
                main()
            codecs.lookup("latin1")  # torch.load needs it
            sys.argv = arguments
            shutil.rmtree(warm)
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        os.umask(umask)
        if then is not None:
            then()

    return sad(*words, log=log, before=before)
