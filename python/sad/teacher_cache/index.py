"""The list of a finished cache's files and examples, written last: where it is missing, the cache is not finished."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from sad.errors import InputError
from sad.teacher_cache.folder import CacheFolder
from sad.teacher_cache.metadata import CacheMetadata, read_metadata
from sad.teacher_cache.shard import SHARD_NAME, Entry, ShardHeader

NAME = "index.json"


class Shard(NamedTuple):
    """A file as the index lists it."""

    name: str
    size: int
    tail_spread: float
    entries: list[Entry]


class Index(NamedTuple):
    """What a finished cache holds."""

    settings: CacheMetadata
    shards: list[Shard]

    def rows(self) -> int:
        """Tokens of all examples."""
        return sum(entry.rows for shard in self.shards for entry in shard.entries)


def write_index(folder: CacheFolder, headers: dict[str, ShardHeader]) -> Index:
    """Lists the files whose headers these are."""
    settings = next(iter(headers.values())).settings
    shards = [Shard(name, h.size, h.tail_spread, h.entries) for name, h in sorted(headers.items())]
    record = {**settings.record(), "shards": [shard._asdict() for shard in shards]}
    folder.write(NAME, json.dumps(record).encode())
    return Index(settings, shards)


def read_index(folder: CacheFolder) -> Index:
    """Reads the list, and compares it with the files that are there.

    Raises:
        InputError: It is missing, of something else, damaged, or a file is missing or of another size.
    """
    where = folder.where(NAME)
    sizes = folder.sizes()
    if NAME not in sizes:
        begun = any(SHARD_NAME.fullmatch(name) for name in sizes)
        got = "one that is not finished" if begun else "none there"
        remedy = "Run the `sad cache` command again: it goes on where it stopped." if begun else "Make it with `sad cache`."
        raise InputError("teacher_cache", f"a finished teacher cache in {folder.url!r}", got, remedy)
    remedy = "Run the `sad cache` command that made it again."
    try:
        record: Any = json.loads(folder.read(NAME))
    except ValueError as error:
        raise InputError(where, "the index of a teacher cache", f"what is no JSON ({error})", remedy) from error
    settings = read_metadata(where, record)
    try:
        shards = [Shard(**{**one, "entries": [Entry(*entry) for entry in one["entries"]]}) for one in record["shards"]]
    except (KeyError, TypeError) as error:
        raise InputError(where, "the index of a teacher cache", f"one with other entries ({error})", remedy) from error
    for shard in shards:
        if sizes.get(shard.name) != shard.size:
            found = f"{sizes[shard.name]} bytes" if shard.name in sizes else "no such file"
            raise InputError(folder.where(shard.name), f"{shard.size} bytes, as the index says", found, remedy)
    return Index(settings, shards)
