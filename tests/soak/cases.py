"""The cases of the soak test and the table of attacks."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.soak.commands import sad
from tests.soak.inputs import Inputs, Task


class NotPossible(Exception):
    """This machine or this user does not permit what an attack needs."""


class Case(NamedTuple):
    """A case: its random numbers, an empty folder, and the inputs of all cases."""

    rng: random.Random
    folder: Path
    inputs: Inputs

    @property
    def log(self) -> Path:
        return self.folder / "log"


ATTACKS: dict[str, Callable[[Case], None]] = {}


def attack(name: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Registers an attack under the name that the table shows. It raises AssertionError if it broke something."""

    def register(function: Callable[[Case], None]) -> Callable[[Case], None]:
        ATTACKS[name] = function
        return function

    return register


def files_below(folder: Path) -> list[Path]:
    """Returns all files of a case below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "log")


def carry_on(case: Case, task: Task, out: Path) -> None:
    """Continues a command until it is complete, and compares its result with that of an undisturbed one."""
    for partial in case.folder.glob(".*.partial"):
        assert not partial.is_dir() or task.name in ("train", "cached"), partial
    if not task.finished(out):
        begun = task.begun(out)
        if not begun:
            shutil.rmtree(out, ignore_errors=True)
        sad(*(task.again(out) if begun else task.start(out)), log=case.log).check(0)
    check_result(case, task, out)
    left = {path.name for path in out.glob(".*")} if out.is_dir() else set()
    assert left <= {".lock"}, left  # a killed owner leaves the file, but not the lock


def check_result(case: Case, task: Task, out: Path) -> None:
    """Checks that a finished command has the result of an undisturbed one."""
    assert task.result(out) == case.inputs.expected[task.name], "another result"
