"""The files that `sad` makes: atomic writing, checksums, locks of folders, and checks of output paths.

A file or folder is written under a hidden name beside its target, flushed to the disk, and renamed. So a reader finds the
old content or the new content, also after a kill or on a full disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from sad.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_NAME = ".lock"
CHECKSUM = "sha256"  # key of the checksum in a sealed record
MANIFEST_NAME = "manifest.json"
_BLOCK_BYTES = 1 << 24
_WAIT_SECONDS = 10  # for the child processes of a dead owner of a lock, which end a few seconds after it

# --- writing ---


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears complete or not at all. A missing folder is created.

    Args:
        path: The file.
        overwrite: Whether to replace an existing file.

    Yields:
        A binary stream.

    Raises:
        FileExistsError: The file exists and `overwrite` is not set.
        OSError: The file cannot be written. An existing file is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial_name(path)
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not overwrite and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_file(path: str | os.PathLike[str], content: str | bytes, *, overwrite: bool = True) -> None:
    """Writes a file atomically. Text is encoded as UTF-8.

    Raises:
        FileExistsError: The file exists and `overwrite` is not set.
        OSError: The file cannot be written. An existing file is unchanged.
    """
    with atomic_file(path, overwrite=overwrite) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def publish_folder(staged: Path, target: Path) -> None:
    """Flushes all files of a folder to the disk and renames it. A folder with the new name is replaced.

    The files get the permissions that the umask leaves, also those that a library made readable for their owner alone.

    Args:
        staged: The finished folder, on the same file system as `target`.
        target: Its new name.
    """
    share_files(staged)
    for folder, _, names in os.walk(staged):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(folder))
    if target.exists():
        remove_folder(target)
    os.rename(staged, target)
    _sync_folder(target.parent)


def share_files(folder: Path) -> None:
    """Gives the files below a folder the permissions that the umask leaves. safetensors makes its files with mode 600."""
    if os.name == "nt":
        return
    for inner, _, names in os.walk(folder):
        mode = os.stat(inner).st_mode & 0o666  # a new folder has those of the umask
        for name in names:
            path = os.path.join(inner, name)
            if os.stat(path).st_mode & 0o777 != mode:
                os.chmod(path, mode)


def remove_folder(path: Path) -> None:
    """Renames a folder to a hidden name and deletes it, so that a kill leaves no incomplete folder under its name."""
    hidden = _partial_name(path)
    os.rename(path, hidden)
    shutil.rmtree(hidden)


def remove_partials(folder: Path) -> None:
    """Deletes the temporary files and folders that killed processes left in a folder. The caller holds the folder's lock."""
    for path in folder.glob(".*.partial"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")


def _sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to the disk, on systems that can."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot flush folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- checksums ---


class ChecksumError(InputError):
    """A file whose content is not what was written."""


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with the SHA-256 of its content as another entry."""
    content = {key: value for key, value in record.items() if key != CHECKSUM}
    return {**content, CHECKSUM: _digest(content)}


def is_sealed(record: Any) -> bool:
    """Whether a parsed JSON value has a checksum, and it is that of its content."""
    return isinstance(record, Mapping) and record.get(CHECKSUM) == _digest({**record, CHECKSUM: None})


def _digest(content: Mapping[str, Any]) -> str:
    content = {key: value for key, value in content.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_record(path: str | os.PathLike[str], record: Mapping[str, Any], indent: int | None = None) -> None:
    """Writes a JSON object with its checksum, atomically."""
    write_file(path, json.dumps(seal(record), indent=indent) + "\n")


def read_record(path: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """Reads a file of `write_record`.

    Args:
        path: The file.
        remedy: What the user can do if the file is damaged, as a sentence.

    Raises:
        FileNotFoundError: The file does not exist.
        ChecksumError: The content is not what was written.
    """
    try:
        record = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ChecksumError(str(path), "a JSON file made by sad", f"other content ({error})", remedy) from None
    if not is_sealed(record):
        got = "another one" if isinstance(record, Mapping) and CHECKSUM in record else "none"
        raise ChecksumError(str(path), f"a {CHECKSUM} that matches the content", got, remedy)
    return {key: value for key, value in record.items() if key != CHECKSUM}


def seal_lines(text: str) -> str:
    """Returns text with a first line that holds the SHA-256 of the text, as a comment."""
    return f"# {CHECKSUM} {hashlib.sha256(text.encode()).hexdigest()} of the lines below\n{text}"


def is_sealed_lines(text: str) -> bool:
    """Whether text begins with the line of `seal_lines`, and its checksum is that of the rest."""
    _, _, rest = text.partition("\n")
    return text == seal_lines(rest)


# --- folders of files ---


def write_manifest(folder: Path) -> None:
    """Writes `manifest.json`: the size and the CRC-32 of every file in the folder."""
    found = {name: list(_size_and_crc(folder / name)) for name in _file_names(folder)}
    write_record(folder / MANIFEST_NAME, {"files": found})


def find_damage(folder: Path) -> str | None:
    """Compares a folder with its manifest.

    Returns:
        What is wrong, in words; None if every file is as it was written.
    """
    path = folder / MANIFEST_NAME
    try:
        files = read_record(path, "")["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST_NAME}, so its save was not finished"
    except (ChecksumError, KeyError):
        return f"{MANIFEST_NAME} was changed"
    for name, (size, crc) in files.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if _size_and_crc(file) != (size, crc):
            return f"{name} was changed"
    return None


def _file_names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(name for path in files if (name := path.relative_to(folder).as_posix()) != MANIFEST_NAME)


def _size_and_crc(path: Path) -> tuple[int, int]:
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc


# --- locks ---


class FolderLock(contextlib.AbstractContextManager):
    """Lets one process at a time write into a folder. The folder is created if it is missing.

    The lock is `flock` on the file `.lock` in the folder. The kernel releases it when its process ends, also after SIGKILL,
    so a file that a dead process left does not block. The file names the owner. Other computers see the lock if the file
    system has `flock` across hosts, such as NFS 4. Without `flock` (Windows) there is no lock.

    Args:
        folder: The folder.
        argument: The argument's name for error messages.

    Raises:
        InputError: (on entry) Another process has the lock.
    """

    def __init__(self, folder: str | os.PathLike[str], argument: str = "out") -> None:
        self._folder, self._argument = Path(folder), argument
        self._path = self._folder / LOCK_NAME
        self._descriptor: int | None = None
        self._made_folder = False

    def __enter__(self) -> FolderLock:
        if self._descriptor is not None or fcntl is None:
            return self
        self._made_folder = not self._folder.exists()
        self._folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _WAIT_SECONDS
        while (descriptor := self._try()) is None:
            owner = self._owner()
            if not _is_dead(owner) or time.monotonic() > deadline:
                raise InputError(
                    self._argument,
                    "a folder that no other process writes to",
                    f"{str(self._folder)!r}, which is in use by {_describe(owner)}",
                    "Wait until that process ends, stop it, or choose another folder.",
                )
            time.sleep(0.1)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_self_description()).encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(self, *exception: object) -> None:
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)  # before the release: no process may lock a file without a name
            os.close(self._descriptor)
            self._descriptor = None
            if self._made_folder:
                with contextlib.suppress(OSError):  # it has files now
                    self._folder.rmdir()

    def _try(self) -> int | None:
        """Returns a descriptor of the locked file, or None if another process has the lock."""
        while True:
            descriptor, is_own = self._open()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                        if is_own:
                            return descriptor
                        self._path.unlink()  # a dead owner's: the next turn makes a new file
            except BlockingIOError:
                os.close(descriptor)
                return None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # this file has no name any more

    def _open(self) -> tuple[int, bool]:
        """Opens the file, which another user may own. Returns its descriptor, and whether this user may write to it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        with contextlib.suppress(PermissionError):
            return os.open(self._path, flags, 0o666), True
        with contextlib.suppress(FileNotFoundError):
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC), False
        return os.open(self._path, flags, 0o666), True  # no file: raises if the folder is read-only

    def _owner(self) -> dict[str, Any]:
        try:
            owner = json.loads(self._path.read_bytes())
        except (OSError, ValueError):  # its owner writes or deletes it at this moment
            return {}
        return owner if isinstance(owner, dict) else {}


def lock_stream(stream: BinaryIO, argument: str, path: str | os.PathLike[str]) -> None:
    """Locks an open file until it is closed, so that one process at a time appends to it. Windows has no lock.

    Args:
        stream: The file, open for writing.
        argument: The argument's name for error messages.
        path: Its path for error messages.

    Raises:
        InputError: Another process has the lock.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        got = f"{str(path)!r}, which another process writes to"
        raise InputError(argument, "a file of this process", got, "Wait until it ends, or choose another name.") from None


def _self_description() -> dict[str, Any]:
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "process": os.getpid(), "since": since}


def _describe(owner: Mapping[str, Any]) -> str:
    if not owner:
        return "a process that is just starting"
    state = ", which has ended, but its child processes have not" if _is_dead(owner) else ""
    return f"process {owner.get('process')} on {owner.get('host')} since {owner.get('since')}{state}"


def _is_dead(owner: Mapping[str, Any]) -> bool:
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("process"), int):
        return False
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:  # it belongs to another user
        return False
    return False


# --- output paths ---


def check_new_file(argument: str, path: str | os.PathLike[str] | None) -> None:
    """Checks before any work that a new file can be created. None is no file.

    Args:
        argument: The argument's name for error messages.
        path: The file.

    Raises:
        InputError: The file exists, or its folder cannot be created or written to.
    """
    if path is None:
        return
    path = Path(path)
    try:
        if os.path.lexists(path):
            raise InputError(argument, "a new file", f"{str(path)!r}, which exists", "Choose another name, or remove it.")
        folder = path.parent
        while not os.path.lexists(folder):
            folder = folder.parent
        os.stat(_partial_name(path))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _not_writable(argument, path, error) from None
    probe = folder / f".{uuid.uuid4().hex[:8]}.partial"
    try:
        probe.open("xb").close()
        probe.unlink()
    except OSError as error:
        raise _not_writable(argument, path, error) from None


def _not_writable(argument: str, path: Path, error: OSError) -> InputError:
    got = f"{str(path)!r} ({error.strerror or error})"
    return InputError(argument, "a file that can be created", got, "Choose a folder that you can write to.")
