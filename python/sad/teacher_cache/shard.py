"""One file of a cache: a safetensors file that says itself what it holds, so that nothing else has to be kept in step."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from sad.errors import InputError
from sad.teacher_cache.folder import CacheFolder
from sad.teacher_cache.metadata import CacheMetadata, read_metadata
from sad.teacher_cache.packed import columns, pack, unpack
from sad.teacher_cache.rows import TeacherRows, concatenate, tail_spread

SHARD_NAME = re.compile(r"rows-[0-9a-f]{16}\.safetensors")
_LONGEST_HEADER = 100_000_000  # of the safetensors format


class Entry(NamedTuple):
    """An example in a shard: its digest, its number of rows, a checksum of their bytes, and the sum of their entropies."""

    digest: str
    rows: int
    checksum: int
    entropy: float


class ShardHeader(NamedTuple):
    """What the beginning of a file says: where its tensors begin, whose they are, and how long the file must be."""

    settings: CacheMetadata
    entries: list[Entry]
    tail_spread: float  # summed over the rows
    begins: dict[str, int]
    size: int


def shard_bytes(examples: Sequence[tuple[str, TeacherRows]], settings: CacheMetadata) -> tuple[str, bytes]:
    """Name and content of a file with these examples (digest, rows). The same examples have the same name."""
    rows = concatenate([part for _, part in examples])
    packed, entries, start = pack(rows, settings), [], 0
    for digest, part in examples:
        stop = start + len(part.rest)
        found = checksum({name: x[start:stop] for name, x in packed.items()}, settings)
        entries.append(Entry(digest, stop - start, found, float(part.entropy.sum(dtype=np.float64))))
        start = stop
    about = {
        **settings.record(),
        "tail_spread": float(tail_spread(rows, settings.vocab_size).sum()),
        "examples": entries,
    }
    data = safetensors.numpy.save(packed, metadata={"sad": json.dumps(about)})
    name = hashlib.sha256("".join(entry.digest for entry in entries).encode()).hexdigest()[:16]
    return f"rows-{name}.safetensors", data


def checksum(packed: dict[str, np.ndarray], settings: CacheMetadata) -> int:
    """CRC-32 of the bytes of an example's rows."""
    found = 0
    for name in columns(settings):
        found = zlib.crc32(np.ascontiguousarray(packed[name]), found)
    return found


def read_header(folder: CacheFolder, name: str, size: int) -> ShardHeader:
    """Reads the beginning of a file.

    Args:
        folder: Where it is.
        name: What it is called.
        size: Its bytes.

    Raises:
        InputError: It is no file of a cache, or is shorter or longer than it says.
    """
    where = folder.where(name)
    length = int.from_bytes(bytes(folder.ranges(name, [(0, 8)])[0]), "little") if size >= 8 else 0
    if size < 8 or not 0 < length <= min(size - 8, _LONGEST_HEADER):
        raise damaged(where, f"{size} bytes, which end within its header")
    try:
        header = json.loads(bytes(folder.ranges(name, [(8, 8 + length)])[0]))
        about = json.loads(header.pop("__metadata__", {}).get("sad", "null"))
    except ValueError as error:
        raise damaged(where, f"a header that cannot be read ({error})") from error
    settings = read_metadata(where, about)
    try:
        entries = [Entry(*entry) for entry in about["examples"]]
        begins = {name: 8 + length + header[name]["data_offsets"][0] for name in columns(settings)}
        end = 8 + length + max(tensor["data_offsets"][1] for tensor in header.values())
        _check_tensors(where, header, settings, sum(entry.rows for entry in entries))
    except (KeyError, TypeError) as error:
        raise damaged(where, f"a header that lacks {error}") from error
    if size != end:
        raise damaged(where, f"{size} bytes where its header says {end}")
    return ShardHeader(settings, entries, float(about["tail_spread"]), begins, end)


def _check_tensors(where: str, header: dict[str, Any], settings: CacheMetadata, rows: int) -> None:
    for name, column in columns(settings).items():
        start, end = header[name]["data_offsets"]
        if end - start != rows * column.row_bytes():
            raise damaged(where, f"a tensor {name!r} of {end - start} bytes for {rows} rows")


class DamagedFileError(InputError):
    """A file that is not what was written."""


def damaged(where: str, got: str, remedy: str = "") -> DamagedFileError:
    """The error; the usual remedy is for what a new run sees by itself."""
    remedy = remedy or "Run the `sad cache` command that made it again: it replaces what is damaged."
    return DamagedFileError(where, "a whole file of a teacher cache", got, remedy)


def read_column(folder: CacheFolder, name: str, header: ShardHeader, key: str) -> np.ndarray:
    """One array of a file, of all its rows."""
    column, rows = columns(header.settings)[key], sum(entry.rows for entry in header.entries)
    [data] = folder.ranges(name, [(header.begins[key], header.begins[key] + rows * column.row_bytes())])
    return np.frombuffer(data, column.dtype).reshape((rows, column.width) if column.width else (rows,))


def read_rows(
    folder: CacheFolder, name: str, header: ShardHeader, first: int, entry: Entry, settings: CacheMetadata
) -> TeacherRows:
    """The rows of one example, which begin at row `first` of the file.

    Raises:
        InputError: Their bytes are not those that were written.
    """
    layout = columns(settings)
    borders = [
        (header.begins[key] + first * x.row_bytes(), header.begins[key] + (first + entry.rows) * x.row_bytes())
        for key, x in layout.items()
    ]
    packed = {}
    for (key, column), data in zip(layout.items(), folder.ranges(name, borders)):
        if len(data) != entry.rows * column.row_bytes():
            raise damaged(folder.where(name), f"an end in the middle of example {entry.digest}")
        shape = (entry.rows, column.width) if column.width else (entry.rows,)
        packed[key] = np.frombuffer(data, column.dtype).reshape(shape)
    if checksum(packed, settings) != entry.checksum:
        remedy = "Delete the file and run the `sad cache` command that made it again."
        raise damaged(folder.where(name), f"other bytes of example {entry.digest} than were written", remedy)
    return unpack(packed, settings)
