"""The files of a cache: a folder on any file system, shards with the packed rows, and the index of a finished cache.

Each shard is a safetensors file whose header describes its contents. So an interrupted run needs no other record, and the
next run continues from the complete shards. The index is written last: a cache without it is not finished.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import safetensors.numpy
from fsspec.implementations.local import LocalFileSystem

from sad import files
from sad.errors import InputError
from sad.teacher_cache.hidden_rows import HiddenRows
from sad.teacher_cache.metadata import CacheMetadata, metadata_from_json
from sad.teacher_cache.row_kinds import row_module
from sad.teacher_cache.rows import ENTROPY_ROUNDING, Column, TeacherRows

INDEX_NAME, HEAD_NAME = "index.json", "head.safetensors"
SHARD_NAME = re.compile(r"rows-[0-9a-f]{16}\.safetensors")
# Names under which files are written before they are renamed.
_NAMES = "|".join((SHARD_NAME.pattern, re.escape(INDEX_NAME), re.escape(HEAD_NAME)))
PARTIAL_NAME = re.compile(rf"\.?(?:{_NAMES})\.[0-9a-f]+\.partial")
_MAX_HEADER_BYTES = 100_000_000  # limit of the safetensors format


class CacheFolder:
    """A folder, by path or URL (`s3://bucket/cache`, `memory://cache`).

    Each process opens the file system for itself, because most clients do not survive a fork.

    Args:
        path: The folder. It need not exist.
        argument: The argument's name for error messages.

    Raises:
        InputError: fsspec does not know the file system, or its package is missing.
    """

    def __init__(self, path: str | Path, argument: str = "out") -> None:
        self.url, self._argument = str(path), argument
        self._opened: tuple[int, Any, str] | None = None
        self._maps: dict[str, np.memmap] = {}
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None, "_maps": {}}

    def _open(self) -> tuple[Any, str]:
        """Returns the file system and the folder's path on it."""
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = (os.getpid(), *fsspec.core.url_to_fs(self.url))
            except (ImportError, ValueError, OSError) as error:
                remedy = "Give a folder, or the URL of a file system that fsspec can open here."
                raise InputError(self._argument, "a path that can be opened", f"{self.url!r} ({error})", remedy) from error
        return self._opened[1:]

    def _locate(self, name: str) -> tuple[Any, str]:
        fs, root = self._open()
        return fs, f"{root.rstrip('/')}/{name}"

    def display_path(self, name: str) -> str:
        """Returns a file's path for error messages."""
        return f"{self.url.rstrip('/')}/{name}"

    def sizes(self) -> dict[str, int]:
        """Returns the folder's entries: name to bytes, -1 for a subfolder. A missing folder has no entries.

        A link to a file counts as the file, such as those of the hub's cache and of DVC.

        Raises:
            InputError: The path is a file.
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
        are_files = {
            name: item["type"] == "file" or bool(item.get("islink") and fs.isfile(item["name"]))
            for name, item in names.items()
        }
        return {name: item["size"] if are_files[name] else -1 for name, item in names.items()}

    def write(self, name: str, data: bytes) -> None:
        """Writes a file under a temporary name and renames it, so that an interrupted write leaves no incomplete file.

        A local file is flushed to the disk.
        """
        fs, path = self._locate(name)
        if isinstance(fs, LocalFileSystem):
            self._maps.pop(name, None)
            files.write_file(path, data)
            return
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        fs.pipe_file(partial, data)
        self._maps.pop(name, None)
        fs.mv(partial, path)

    def lock(self) -> contextlib.AbstractContextManager:
        """Returns a context in which no other process writes to a local folder. Remote file systems have no lock."""
        fs, root = self._open()
        is_local = isinstance(fs, LocalFileSystem)
        return files.FolderLock(root, self._argument) if is_local else contextlib.nullcontext()

    def remove(self, name: str) -> None:
        """Deletes a file."""
        fs, path = self._locate(name)
        fs.rm_file(path)

    def read(self, name: str) -> bytes:
        """Returns the content of a file.

        Raises:
            FileNotFoundError: The file does not exist.
        """
        fs, path = self._locate(name)
        return fs.cat_file(path)

    def read_ranges(self, name: str, ranges: list[tuple[int, int]]) -> list[Any]:
        """Returns the bytes of each (start, end) range. Local files are memory-mapped: no copy, shared by all processes."""
        fs, path = self._locate(name)
        if not isinstance(fs, LocalFileSystem):
            starts, ends = zip(*ranges)
            return fs.cat_ranges([path] * len(ranges), list(starts), list(ends), on_error="raise")
        if name not in self._maps:
            self._maps[name] = np.memmap(path, np.uint8, mode="r")
        return [self._maps[name][start:end] for start, end in ranges]


class Entry(NamedTuple):
    """An example in a shard: its digest, its number of rows, the checksum of their bytes, and the sum of their entropies."""

    digest: str
    rows: int
    checksum: int
    entropy: float


class ShardHeader(NamedTuple):
    """The header of a shard. `starts` are byte offsets of the arrays, `tail_spread` is summed over the rows."""

    metadata: CacheMetadata
    entries: list[Entry]
    tail_spread: float
    starts: dict[str, int]
    size: int


class DamagedFileError(InputError):
    """A file of a cache whose content is not what was written."""


def damaged(file: str, got: str, remedy: str = "") -> DamagedFileError:
    """Returns the error for a file of a cache that is not what was written."""
    remedy = remedy or "Run the `sad cache` command again: it replaces damaged files."
    return DamagedFileError(file, "a complete file of a teacher cache", got, remedy)


def serialize_shard(examples: Sequence[tuple[str, TeacherRows | HiddenRows]], metadata: CacheMetadata) -> tuple[str, bytes]:
    """Returns the name and the content of a shard with these (digest, rows). Equal examples get an equal name."""
    kind = row_module(metadata)
    rows = kind.concatenate([part for _, part in examples])
    packed, entries, start = kind.pack(rows, metadata), [], 0
    for digest, part in examples:
        stop = start + part.size
        checksum = _checksum({name: x[start:stop] for name, x in packed.items()}, metadata)
        entries.append(Entry(digest, stop - start, checksum, float(part.entropy.sum(dtype=np.float64))))
        start = stop
    spread = float(kind.tail_spread(rows, metadata.vocab_size).sum())
    header = files.seal({**metadata.to_json(), "tail_spread": spread, "examples": entries})
    data = safetensors.numpy.save(packed, metadata={"sad": json.dumps(header)})
    name = hashlib.sha256("".join(entry.digest for entry in entries).encode()).hexdigest()[:16]
    return f"rows-{name}.safetensors", data


def _columns(metadata: CacheMetadata) -> dict[str, Column]:
    return row_module(metadata).packed_columns(metadata)


def _checksum(packed: dict[str, np.ndarray], metadata: CacheMetadata) -> int:
    """Returns the CRC-32 of an example's packed rows."""
    found = 0
    for name in _columns(metadata):
        found = zlib.crc32(np.ascontiguousarray(packed[name]), found)
    return found


def read_header(folder: CacheFolder, name: str, size: int) -> ShardHeader:
    """Reads the header of a shard.

    Args:
        folder: The cache.
        name: Name of the shard.
        size: Its bytes.

    Raises:
        InputError: The file is not a shard of a cache, or its size does not match its header.
    """
    file = folder.display_path(name)
    length = int.from_bytes(bytes(folder.read_ranges(name, [(0, 8)])[0]), "little") if size >= 8 else 0
    if size < 8 or not 0 < length <= min(size - 8, _MAX_HEADER_BYTES):
        raise damaged(file, f"{size} bytes, fewer than its header needs")
    try:
        tensors = json.loads(bytes(folder.read_ranges(name, [(8, 8 + length)])[0]))
        header = json.loads(tensors.pop("__metadata__", {}).get("sad", "null"))
    except ValueError as error:
        raise damaged(file, f"a header that cannot be read ({error})") from error
    _check_seal(file, header)
    metadata = metadata_from_json(file, header)
    try:
        entries = _entries(file, header["examples"], metadata)
        starts = {key: 8 + length + tensors[key]["data_offsets"][0] for key in _columns(metadata)}
        end = 8 + length + max(tensor["data_offsets"][1] for tensor in tensors.values())
        _check_tensors(file, tensors, metadata, sum(entry.rows for entry in entries))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(file, f"a header without valid entries ({error})") from error
    if size != end:
        raise damaged(file, f"{size} bytes, but {end} in its header")
    return ShardHeader(metadata, entries, float(header["tail_spread"]), starts, end)


def _check_seal(file: str, record: Any) -> None:
    """Checks the checksum of an index or of a header. Other versions of the format have none."""
    if not isinstance(record, Mapping) or files.CHECKSUM not in record:
        metadata_from_json(file, record)  # names a foreign file, and another version of the format
    if not files.is_sealed(record):
        raise damaged(file, "another checksum of its content")


def _entries(file: str, listed: Any, metadata: CacheMetadata) -> list[Entry]:
    """Returns the entries of a shard.

    Raises:
        DamagedFileError: An entropy is impossible.
    """
    entries = [Entry(*entry) for entry in listed]
    for entry in entries:
        most = entry.rows * math.log(metadata.vocab_size)
        if not -ENTROPY_ROUNDING <= entry.entropy <= most + entry.rows * ENTROPY_ROUNDING:
            raise damaged(file, f"an entropy of {entry.entropy} nats of example {entry.digest} with {entry.rows} rows")
    return entries


def _check_tensors(file: str, tensors: dict[str, Any], metadata: CacheMetadata, rows: int) -> None:
    for name, column in _columns(metadata).items():
        start, end = tensors[name]["data_offsets"]
        if end - start != rows * column.row_bytes():
            raise damaged(file, f"a tensor {name!r} of {end - start} bytes for {rows} rows")


def read_column(folder: CacheFolder, name: str, header: ShardHeader, key: str) -> np.ndarray:
    """Returns one packed array of a shard, all rows."""
    column, rows = _columns(header.metadata)[key], sum(entry.rows for entry in header.entries)
    start = header.starts[key]
    [data] = folder.read_ranges(name, [(start, start + rows * column.row_bytes())])
    return column.from_bytes(data, rows)


def read_rows(folder: CacheFolder, name: str, header: ShardHeader, first: int, entry: Entry) -> TeacherRows | HiddenRows:
    """Returns the rows of one example. `first` is the index of its first row in the shard.

    Raises:
        InputError: The checksum does not match, or a value is impossible.
    """
    kind = row_module(header.metadata)
    columns, ranges, packed = _columns(header.metadata), [], {}
    for key, column in columns.items():
        start = header.starts[key] + first * column.row_bytes()
        ranges.append((start, start + entry.rows * column.row_bytes()))
    for (key, column), data in zip(columns.items(), folder.read_ranges(name, ranges)):
        if len(data) != entry.rows * column.row_bytes():
            raise damaged(folder.display_path(name), f"a file that ends within example {entry.digest}")
        packed[key] = column.from_bytes(data, entry.rows)
    if _checksum(packed, header.metadata) != entry.checksum:
        got = f"another checksum of example {entry.digest}"
        remedy = "Delete the file and run the `sad cache` command again."
        raise damaged(folder.display_path(name), got, remedy)
    rows = kind.unpack(packed, header.metadata)
    problem = kind.find_problem(rows, header.metadata.vocab_size)
    total = float(rows.entropy.sum(dtype=np.float64))
    if problem is None and not math.isclose(total, entry.entropy, rel_tol=1e-6, abs_tol=1e-6):
        problem = f"a sum of entropies of {total} nats instead of {entry.entropy}"
    if problem is not None:
        got = f"{problem} in example {entry.digest}"
        raise damaged(folder.display_path(name), got, "Delete the folder and make the cache again.")
    return rows


class Shard(NamedTuple):
    """A shard in the index."""

    name: str
    size: int
    tail_spread: float
    entries: list[Entry]


class Index(NamedTuple):
    """The contents of a finished cache."""

    metadata: CacheMetadata
    shards: list[Shard]


def write_index(folder: CacheFolder, headers: dict[str, ShardHeader]) -> None:
    """Writes the index of the shards with these headers, by name."""
    metadata = next(iter(headers.values())).metadata
    shards = [Shard(name, h.size, h.tail_spread, h.entries) for name, h in sorted(headers.items())]
    record = {**metadata.to_json(), "shards": [shard._asdict() for shard in shards]}
    folder.write(INDEX_NAME, json.dumps(files.seal(record)).encode())


def read_index(folder: CacheFolder) -> Index:
    """Reads the index and compares it with the files in the folder.

    Raises:
        InputError: The index is missing, damaged or not of a teacher cache, or a shard is missing or has another size.
    """
    file, sizes = folder.display_path(INDEX_NAME), folder.sizes()
    if INDEX_NAME not in sizes:
        begun = any(SHARD_NAME.fullmatch(name) for name in sizes)
        got = "one that is not finished" if begun else "none there"
        remedy = (
            "Run the `sad cache` command again: it continues where it stopped." if begun else "Make it with `sad cache`."
        )
        raise InputError("teacher_cache", f"a finished teacher cache in {folder.url!r}", got, remedy)
    remedy = "Run the `sad cache` command again."
    try:
        record: Any = json.loads(folder.read(INDEX_NAME))
    except ValueError as error:
        raise InputError(file, "the index of a teacher cache", f"a file that is not JSON ({error})", remedy) from error
    _check_seal(file, record)
    metadata = metadata_from_json(file, record)
    try:
        shards = [Shard(**{**one, "entries": _entries(file, one["entries"], metadata)}) for one in record["shards"]]
    except (KeyError, TypeError) as error:
        raise InputError(file, "the index of a teacher cache", f"one with unknown entries ({error})", remedy) from error
    if metadata.is_hidden and HEAD_NAME not in sizes:
        raise InputError(folder.display_path(HEAD_NAME), "the head of the teacher", "no such file", remedy)
    for shard in shards:
        if sizes.get(shard.name) != shard.size:
            got = f"{sizes[shard.name]} bytes" if shard.name in sizes else "no such file"
            raise InputError(folder.display_path(shard.name), f"{shard.size} bytes, as in the index", got, remedy)
    return Index(metadata, shards)
