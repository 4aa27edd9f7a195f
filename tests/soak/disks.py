"""Attacks by real file systems that are too small, and by a limit of file sizes. Mounting needs root."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.soak.cases import Case, NotPossible, attack, carry_on
from tests.soak.commands import sad
from tests.soak.inputs import Task

# Free kilobytes, at most: a command that writes less than that ends undisturbed.
_KILOBYTES = {"train": 1500, "cached": 1500, "cache": 120, "collect": 60, "eval": 60, "inspect": 60}
_IMAGE_BYTES = 12 << 20


def _choose(case: Case) -> tuple[Task, int]:
    """Returns a command and the kilobytes that it may write."""
    name = case.rng.choice(list(_KILOBYTES))
    return case.inputs.tasks[name], case.rng.randrange(4, _KILOBYTES[name])


@attack("a disk of random size")
def small(case: Case) -> None:
    """The disk is full in the middle of a write, also of those in C++ and Rust. Later the files move to a larger one."""
    task, kilobytes = _choose(case)
    disk, out = case.folder / "disk", case.folder / "moved" / task.out
    with mounted(disk, "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs"):
        sad(*task.start(disk / task.out), log=case.log).check(0, 2)
        shutil.copytree(disk, out.parent, symlinks=True)
    for name in (".lock", task.out + ".partial"):
        assert not (out.parent / f".{name}").exists()
    carry_on(case, task, out)


@attack("a disk filled to the brim")
def filled(case: Case) -> None:
    """A file takes all but some kilobytes of an ext4 file system. It is deleted, and the command continues in place."""
    task, kilobytes = _choose(case)
    disk, image = case.folder / "disk", case.folder / "image"
    with image.open("wb") as file:
        file.truncate(_IMAGE_BYTES)
    if _code("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)):
        raise NotPossible("mkfs.ext4 cannot make a file system")
    with mounted(disk, "-o", "loop", str(image)):
        filler = disk / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _free(disk) - 1024 * kilobytes)
        sad(*task.start(disk / task.out), log=case.log).check(0, 2)
        filler.unlink()
        carry_on(case, task, disk / task.out)


@attack("a limit of file sizes")
def limited(case: Case) -> None:
    """Every write beyond a size fails with EFBIG, also those in C++ and Rust."""
    task, kilobytes = _choose(case)
    most = int(1024 * kilobytes ** case.rng.random())

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    out = case.folder / task.out
    sad(*task.start(out), log=case.log, before=before).check(0, 2)
    carry_on(case, task, out)


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    """Mounts a file system on a folder.

    Args:
        folder: The folder; it is created.
        arguments: The arguments of `mount` before the folder.

    Raises:
        NotPossible: This is not permitted here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if _code("mount", *arguments, str(folder)):
        raise NotPossible("this user or this machine cannot mount file systems")
    try:
        yield
    finally:
        _code("umount", "-l", str(folder))


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _code(*command: str) -> int:
    """Returns the exit code of a program; 127 if there is no such program."""
    try:
        return subprocess.run(command, capture_output=True).returncode
    except OSError:
        return 127
