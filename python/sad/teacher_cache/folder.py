"""The folder of a cache on any file system that fsspec knows; files appear in it whole or not at all."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from sad.errors import InputError


def partial_of(pattern: str) -> re.Pattern[str]:
    """What names have under which files whose names match are written before they are renamed."""
    return re.compile(rf"(?:{pattern})\.[0-9a-f]{{32}}\.partial")


class CacheFolder:
    """A folder, by path or URL (`s3://bucket/cache`, `memory://cache`).

    The file system is opened again in every process, since most clients do not survive a fork.

    Args:
        path: The folder; it need not exist.
        argument: What the user calls it, for messages.

    Raises:
        InputError: fsspec knows no such file system, or its package is missing.
    """

    def __init__(self, path: str | Path, argument: str = "out") -> None:
        self.url, self._argument = str(path), argument
        self._opened: tuple[int, Any, str] | None = None
        self._maps: dict[str, np.memmap] = {}
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_maps": {}}

    def _open(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = (os.getpid(), *fsspec.core.url_to_fs(self.url))
            except (ImportError, ValueError) as error:
                remedy = "Give a folder, or a URL of a file system that fsspec can open here."
                raise InputError(self._argument, "a path that can be opened", f"{self.url!r} ({error})", remedy) from error
        return self._opened[1:]

    def _at(self, name: str) -> tuple[Any, str]:
        fs, root = self._open()
        return fs, f"{root.rstrip('/')}/{name}"

    def where(self, name: str) -> str:
        """A file's path, for messages."""
        return f"{self.url.rstrip('/')}/{name}"

    def sizes(self) -> dict[str, int]:
        """Name to bytes of what lies in the folder, folders in it with -1; empty where there is none.

        Raises:
            InputError: It is a file.
        """
        fs, root = self._open()
        fs.invalidate_cache()
        try:
            if fs.isfile(root):
                got = f"{self.url!r}, which is a file"
                raise InputError(self._argument, "a folder", got, "Choose another name.")
            found = fs.ls(root, detail=True)
        except FileNotFoundError:
            return {}
        names = {item["name"].rstrip("/").rpartition("/")[2]: item for item in found}
        return {name: item["size"] if item["type"] == "file" else -1 for name, item in names.items()}

    def write(self, name: str, data: bytes) -> None:
        """Writes a file under another name and renames it: killed at any moment, this leaves all of it or none."""
        fs, path = self._at(name)
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        fs.pipe_file(partial, data)
        self._maps.pop(name, None)
        fs.mv(partial, path)

    def remove(self, name: str) -> None:
        """Deletes a file."""
        fs, path = self._at(name)
        fs.rm_file(path)

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: There is none.
        """
        fs, path = self._at(name)
        return fs.cat_file(path)

    def ranges(self, name: str, borders: list[tuple[int, int]]) -> list[Any]:
        """Bytes from start to end of each pair; of a local file without copying, from memory that the processes share."""
        fs, path = self._at(name)
        if not isinstance(fs, LocalFileSystem):
            starts, ends = zip(*borders)
            return fs.cat_ranges([path] * len(borders), list(starts), list(ends), on_error="raise")
        if name not in self._maps:
            self._maps[name] = np.memmap(path, np.uint8, mode="r")
        return [self._maps[name][start:end] for start, end in borders]
