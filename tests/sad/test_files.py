"""Atomic files and folders under faults at every operation, checksums, locks, and output paths."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
from pathlib import Path

import pytest

from sad import files
from sad.errors import InputError
from sad.files import FolderLock

OPERATIONS = ("fsync", "replace", "rename")


class Killed(BaseException):
    """Like SIGKILL: no handler catches it."""


def fail_at(monkeypatch, moment: int, error: BaseException) -> None:
    """Raises at the nth operation on a file, and at all later ones."""
    seen = 0

    def failing(inner):
        def operation(*args, **kwargs):
            nonlocal seen
            seen += 1
            if seen > moment:
                raise error
            return inner(*args, **kwargs)

        return operation

    for name in OPERATIONS:
        monkeypatch.setattr(os, name, failing(getattr(os, name)))


@pytest.mark.parametrize("error", [Killed(), OSError(28, "No space left on device")], ids=["killed", "disk full"])
def test_a_file_has_the_old_or_the_new_content(tmp_path, monkeypatch, error):
    path, seen = tmp_path / "file.json", set()
    for moment in range(10):
        path.write_text("old")
        with monkeypatch.context() as patch:
            fail_at(patch, moment, error)
            try:
                files.write_file(path, "new")
                failed = False
            except (Killed, OSError):
                failed = True
        seen.add(path.read_text())
        assert [p.name for p in tmp_path.iterdir()] == ["file.json"]
        if not failed:
            break
    assert seen == {"old", "new"} and path.read_text() == "new" and moment >= 2


def test_an_existing_file_is_kept_if_so_asked(tmp_path):
    files.write_file(tmp_path / "a" / "file", "old", overwrite=False)
    with pytest.raises(FileExistsError):
        files.write_file(tmp_path / "a" / "file", "new", overwrite=False)
    assert [path.read_text() for path in (tmp_path / "a").iterdir()] == ["old"]


def test_every_changed_byte_of_a_record_is_found(tmp_path):
    path = tmp_path / "record.json"
    files.write_record(path, {"entropy": [0.1, 2.5e-7], "name": "ä", "none": None})
    content = path.read_bytes()
    assert files.read_record(path, "Remedy.") == {"entropy": [0.1, 2.5e-7], "name": "ä", "none": None}
    for place in range(len(content) - 2):  # the last bytes are `}` and a line end
        for bit in (1, 4):
            path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
            with pytest.raises(files.ChecksumError, match="Remedy"):
                files.read_record(path, "Remedy.")


def test_sealed_lines(tmp_path):
    text = files.seal_lines("learning_rate: 1e-3\nseed: 1\n")
    assert files.is_sealed_lines(text)
    assert not files.is_sealed_lines(text.replace("1e-3", "1e-2"))
    assert not files.is_sealed_lines("learning_rate: 1e-3\n") and not files.is_sealed_lines("")


def test_the_manifest_finds_missing_short_and_changed_files(tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in ("one", "deep/two"):
        (folder / name).write_bytes(b"content")
    assert "no manifest.json" in files.find_damage(folder)
    files.write_manifest(folder)
    assert files.find_damage(folder) is None
    for damage, words in ((b"Content", "was changed"), (b"cont", "4 bytes instead of 7"), (None, "is missing")):
        (folder / "deep" / "two").write_bytes(damage) if damage else (folder / "deep" / "two").unlink()
        assert files.find_damage(folder) == f"deep/two {words}".replace("4 bytes", "has 4 bytes")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["deep/two"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert files.find_damage(folder) == "manifest.json was changed"


def hold(folder: Path, ready) -> None:
    with FolderLock(folder):
        ready.set()
        signal.pause()


def test_the_lock_names_its_owner_and_ends_with_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    owner = context.Process(target=hold, args=(tmp_path, ready))
    owner.start()
    assert ready.wait(60)
    with pytest.raises(InputError, match=rf"in use by process {owner.pid} on {socket.gethostname()} since 2") as caught:
        FolderLock(tmp_path).__enter__()
    assert "choose another folder" in str(caught.value)
    os.kill(owner.pid, signal.SIGKILL)
    owner.join(60)
    assert (tmp_path / ".lock").is_file(), "the dead owner has left its file"
    with FolderLock(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()}"):
        FolderLock(tmp_path).__enter__()
    assert not list(tmp_path.iterdir())


def test_a_lock_file_of_another_user(tmp_path, monkeypatch):
    """A user who may not write to the file takes the lock of a dead owner, and sees the owner who lives."""
    inner = os.open

    def opened(path, flags, mode=0o777):
        if flags & os.O_RDWR and os.path.exists(path) and not os.stat(path).st_mode & 0o222:  # root may write all the same
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return inner(path, flags, mode)

    monkeypatch.setattr(os, "open", opened)
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"host": socket.gethostname(), "process": 2**22 + 1, "since": "2026"}))
    path.chmod(0o444)
    with FolderLock(tmp_path):
        assert json.loads(path.read_bytes())["process"] == os.getpid()
        path.chmod(0o444)
        with pytest.raises(InputError, match=f"process {os.getpid()}"):
            FolderLock(tmp_path).__enter__()
    assert not list(tmp_path.iterdir())


def test_a_lock_in_a_folder_without_permission_to_write(tmp_path, monkeypatch):
    def refused(path, flags, mode=0o777):
        error = errno.EACCES if flags & os.O_CREAT else errno.ENOENT
        raise OSError(error, os.strerror(error), str(path))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionError, match=r"\.lock"):
        FolderLock(tmp_path).__enter__()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_published_files_have_the_permissions_of_the_umask(tmp_path):
    """safetensors makes its files with mode 600, so a colleague could not read a trained model."""
    (tmp_path / "staged" / "deep").mkdir(parents=True)
    for name in ("weights", "deep/more"):
        (tmp_path / "staged" / name).touch(mode=0o600)
    (tmp_path / "plain").touch()
    files.publish_folder(tmp_path / "staged", tmp_path / "model")
    modes = {path.stat().st_mode for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_a_new_folder_without_files_disappears_with_its_lock(tmp_path):
    with FolderLock(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


def test_a_path_that_cannot_be_written_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "file").write_text("")
    for path, reason in (
        (tmp_path / "file", "which exists"),
        (tmp_path / "file" / "below.json", "Not a directory"),
        (Path("/proc/no/such.json"), "/proc"),
        (tmp_path / ("x" * 300), "too long"),
    ):
        with pytest.raises(InputError, match=reason):
            files.check_new_file("out", path)
    files.check_new_file("out", tmp_path / "new" / "deep" / "file.json")
    files.check_new_file("out", None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
