"""Writes a teacher cache: one pass over what is missing, in any number of processes, going on where a killed one stopped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn
from tqdm.auto import tqdm

from sad.errors import InputError
from sad.teacher_cache.folder import CacheFolder, partial_of
from sad.teacher_cache.index import NAME, write_index
from sad.teacher_cache.metadata import CacheMetadata, example_digest, supervised_rows
from sad.teacher_cache.packed import row_bytes
from sad.teacher_cache.rows import TeacherRows
from sad.teacher_cache.shard import SHARD_NAME, DamagedFileError, ShardHeader, read_column, read_header, shard_bytes
from sad.teacher_cache.teacher import RowReader
from sad.trajectories.batching import batches_by_length

SHARD_BYTES = 32 << 20  # at most this much work is done twice after a kill
BATCH_TOKENS = 4096
_UNFINISHED = partial_of(f"{SHARD_NAME.pattern}|{re.escape(NAME)}")
_Decision = TypeVar("_Decision")
Example = Mapping[str, Sequence[int]]


class CacheReport(NamedTuple):
    """A finished cache in numbers, over all of its tokens.

    `tokens`; `bytes_per_token` of all files but the index; `mass` and `mass_low`, the probability of the listed tokens, mean
    and 1st percentile; `tail_spread`, what the lists hide, nats, mean (`sad.teacher_cache.rows.tail_spread`).
    """

    tokens: int
    bytes_per_token: float
    mass: float
    mass_low: float
    tail_spread: float


def write_teacher_cache(
    teacher: nn.Module,
    examples: Sequence[Example],
    path: str | Path,
    settings: CacheMetadata,
    *,
    batch_tokens: int = BATCH_TOKENS,
    shard_size: int = SHARD_BYTES,
    show_progress: bool = True,
) -> CacheReport:
    """Runs the teacher over the examples that the cache does not hold yet, and adds them.

    Every process of a distributed run calls this and takes its share of the batches. Each writes files of its own, which say
    what they hold; the index comes last. So a run that was killed leaves whole files, and the next one, of any number of
    processes, computes the rest.

    Args:
        teacher: A causal language model, on the device where it is to run. Put into evaluation mode.
        examples: Mappings with `input_ids` and `span_ids`.
        path: Folder or URL of the cache: new, unfinished, or finished.
        settings: What the cache is; those of a cache that exists must be the same.
        batch_tokens: Tokens of a batch, padding included.
        shard_size: Bytes after which a file is written.
        show_progress: A bar with tokens per second, in the first process of each machine.

    Raises:
        InputError: The folder holds another cache or something else, no example has a supervised token, or the teacher's
            logits are NaN.
    """
    state, folder = PartialState(), CacheFolder(path)
    by_digest = {example_digest(x["input_ids"], x["span_ids"]): x for x in examples if len(supervised_rows(x["span_ids"]))}
    if not by_digest:
        raise InputError("data", "examples with reasoning or actions", "none", "See with `sad inspect` what was found.")

    def missing() -> list[str]:
        held = {entry.digest for header in read_shards(folder, settings).values() for entry in header.entries}
        return [digest for digest in by_digest if digest not in held]

    todo = _agree(state, missing)
    lengths = [len(by_digest[digest]["input_ids"]) for digest in todo]
    batches = batches_by_length(lengths, batch_tokens)[state.process_index :: state.num_processes]
    if batches:
        reader = RowReader(teacher, settings.top_k, settings.vocab_size)
        named = [[(todo[i], by_digest[todo[i]]) for i in batch] for batch in batches]
        _write_shards(reader, named, folder, settings, shard_size, show_progress and state.is_local_main_process)
    state.wait_for_everyone()
    return _agree(state, lambda: _finish(folder, settings, list(by_digest)))


def _agree(state: PartialState, decide: Callable[[], _Decision]) -> _Decision:
    """What `decide` returns in the main process, in all of them, or its error."""
    found: list[Any] = [None]
    if state.is_main_process:
        try:
            found = [decide()]
        except InputError as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], InputError):
        raise found[0]
    return found[0]


def read_shards(folder: CacheFolder, settings: CacheMetadata | None = None) -> dict[str, ShardHeader]:
    """The beginnings of the whole files in a folder by name. Damaged files are left out.

    Args:
        folder: Where.
        settings: What the cache must be; None: any.

    Raises:
        InputError: Something else is in the folder, or a cache with other settings.
    """
    headers = {}
    for name, size in sorted(folder.sizes().items()):
        if SHARD_NAME.fullmatch(name) and size >= 0:
            try:
                headers[name] = read_header(folder, name, size)
            except DamagedFileError:
                continue
        elif name != NAME and not _UNFINISHED.fullmatch(name):
            got = f"{folder.url!r}, which holds {name!r}"
            raise InputError("out", "a new or empty folder, or one of a teacher cache", got, "Choose another folder.")
    for name, header in headers.items() if settings is not None else ():
        if differ := settings.differences(header.settings):
            remedy = "Repeat the command that began it, or choose another folder."
            raise InputError("out", f"a cache with {differ[0]}", f"{differ[1]} in {folder.where(name)!r}", remedy)
    return headers


def _write_shards(
    reader: RowReader,
    batches: list[list[tuple[str, Example]]],
    folder: CacheFolder,
    settings: CacheMetadata,
    shard_size: int,
    show: bool,
) -> None:
    total = sum(len(supervised_rows(example["span_ids"])) for batch in batches for _, example in batch)
    waiting: list[tuple[str, TeacherRows]] = []
    size = 0
    with tqdm(total=total, desc="teacher", unit=" tokens", unit_scale=True, disable=not show, leave=False) as bar:
        for digest, rows in _rows(reader, batches):
            waiting.append((digest, rows))
            size += len(rows.rest) * row_bytes(settings)
            bar.update(len(rows.rest))
            if size >= shard_size:
                folder.write(*shard_bytes(waiting, settings))
                waiting, size = [], 0
    if waiting:
        folder.write(*shard_bytes(waiting, settings))


def _rows(reader: RowReader, batches: list[list[tuple[str, Example]]]) -> Iterator[tuple[str, TeacherRows]]:
    for batch in batches:
        yield from zip([digest for digest, _ in batch], reader.read([example for _, example in batch]))


def _finish(folder: CacheFolder, settings: CacheMetadata, wanted: list[str]) -> CacheReport:
    """Lists the files, deletes what is not part of the cache, and reads what is to be reported."""
    headers = read_shards(folder, settings)
    held = {entry.digest for header in headers.values() for entry in header.entries}
    if lacking := [digest for digest in wanted if digest not in held]:
        got = f"{len(lacking)} missing after the pass"
        raise InputError(folder.url, "all examples in the files written", got, "Let one run at a time write into a folder.")
    write_index(folder, headers)
    for name in folder.sizes():
        if name not in headers and name != NAME:
            folder.remove(name)
    rest = np.concatenate([read_column(folder, name, header, "rest") for name, header in headers.items()])
    mass = 1.0 - rest.astype(np.float64)
    return CacheReport(
        tokens=len(rest),
        bytes_per_token=sum(header.size for header in headers.values()) / len(rest),
        mass=float(mass.mean()),
        mass_low=float(np.quantile(mass, 0.01)),
        tail_spread=sum(header.tail_spread for header in headers.values()) / len(rest),
    )
