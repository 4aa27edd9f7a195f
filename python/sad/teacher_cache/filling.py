"""Fills a cache with rows that another program computes: a server, or a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from sad.errors import InputError
from sad.teacher_cache.metadata import CacheMetadata, example_digest, supervised_rows
from sad.teacher_cache.rows import TeacherRows
from sad.teacher_cache.storage import CacheFolder, serialize_shard
from sad.teacher_cache.writer import CacheReport, Example, finish_cache, read_shards

SHARD_BYTES = 8 << 20
SHARD_SECONDS = 60.0  # an interrupted process repeats at most this much work
Source = Callable[[Sequence[Example]], Iterator[tuple[int, TeacherRows]]]


def write_rows(
    source: Source,
    examples: Sequence[Example],
    path: str | Path,
    metadata: CacheMetadata,
    *,
    shard_size: int = SHARD_BYTES,
    shard_seconds: float = SHARD_SECONDS,
    show_progress: bool = True,
) -> CacheReport:
    """Adds the rows of the examples that a cache lacks.

    If the source fails, or the process is interrupted by an exception, the finished examples are written first.

    Args:
        source: Yields (index of the example, its rows) for a list of examples, in any order.
        examples: Mappings with `input_ids` and `span_ids`.
        path: Folder or URL of the cache: new, unfinished or finished.
        metadata: Identifies the cache. An existing cache must have equal metadata.
        shard_size: Bytes after which a shard is written.
        shard_seconds: Seconds after which a shard is written.
        show_progress: Whether to show a progress bar.

    Returns:
        Statistics of the whole cache.

    Raises:
        InputError: The folder holds another cache or other files, another process writes to it, no example has a supervised
            token, or the source raises it.
    """
    folder, observe = CacheFolder(path), metadata.observe
    by_digest = {
        example_digest(x["input_ids"], x["span_ids"]): x for x in examples if len(supervised_rows(x["span_ids"], observe))
    }
    if not by_digest:
        raise InputError("data", "examples with reasoning or actions", "none", "Check the data with `sad inspect`.")
    read_shards(folder, metadata)  # refuses another folder before the lock writes to it
    with folder.lock():
        written = {entry.digest for header in read_shards(folder, metadata).values() for entry in header.entries}
        missing = [digest for digest in by_digest if digest not in written]
        if missing:
            _write_shards(
                source, {x: by_digest[x] for x in missing}, folder, metadata, shard_size, shard_seconds, show_progress
            )
        return finish_cache(folder, metadata, list(by_digest))


def _write_shards(
    source: Source,
    examples: dict[str, Example],
    folder: CacheFolder,
    metadata: CacheMetadata,
    shard_size: int,
    shard_seconds: float,
    show: bool,
) -> None:
    digests = list(examples)
    pending: list[tuple[str, TeacherRows]] = []
    size, since = 0, time.monotonic()

    def flush() -> None:
        nonlocal size, since
        if pending:
            folder.write(*serialize_shard(sorted(pending, key=lambda pair: pair[0]), metadata))
        pending.clear()
        size, since = 0, time.monotonic()

    total = sum(len(supervised_rows(example["span_ids"], metadata.observe)) for example in examples.values())
    with tqdm(
        total=total, desc="teacher", unit=" tokens", unit_scale=True, miniters=1, disable=not show, leave=False
    ) as bar:
        try:
            for number, rows in source(list(examples.values())):
                pending.append((digests[number], rows))
                size += sum(part.nbytes for part in rows)
                bar.update(len(rows.rest))
                if size >= shard_size or time.monotonic() - since >= shard_seconds:
                    flush()
        finally:
            flush()
