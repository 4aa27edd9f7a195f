"""Writes a teacher cache: one pass of the teacher over the missing examples, in one or several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.utils import logging

from sad.errors import InputError
from sad.files import LOCK_NAME
from sad.model_parts import Head, split_model
from sad.teacher_cache.head import head_metadata, head_of, write_head
from sad.teacher_cache.hidden_rows import HiddenRows, rows_from_hidden
from sad.teacher_cache.metadata import CacheMetadata, example_digest, supervised_rows
from sad.teacher_cache.options import BATCH_TOKENS
from sad.teacher_cache.row_kinds import row_bytes
from sad.teacher_cache.rows import TeacherRows, concatenate, rows_from_logits
from sad.teacher_cache.storage import (
    HEAD_NAME,
    INDEX_NAME,
    PARTIAL_NAME,
    SHARD_NAME,
    CacheFolder,
    DamagedFileError,
    ShardHeader,
    read_column,
    read_header,
    serialize_shard,
    write_index,
)
from sad.trajectories.batching import batches_by_length, pad_batch

SHARD_BYTES = 32 << 20  # an interrupted process repeats at most this much work
_CHUNK_BYTES = 64 << 20  # float32 logits per chunk; `rows_from_logits` allocates three more buffers of this size
_Result = TypeVar("_Result")
Example = Mapping[str, Sequence[int]]

logger = logging.get_logger(__name__)


class CacheReport(NamedTuple):
    """Statistics of a finished cache, over all of its tokens.

    Attributes:
        tokens: Supervised tokens.
        bytes_per_token: Bytes per token of the files with rows.
        mass: Probability of the top-k tokens, mean. 1 with hidden states, which determine all tokens.
        mass_low: Probability of the top-k tokens, 1st percentile.
        tail_spread: KL that the cache cannot show for a student with a uniform tail, mean in nats
            (`sad.teacher_cache.rows.tail_spread`).
        head_bytes: Bytes of the file with the teacher's head. 0 without hidden states.
    """

    tokens: int
    bytes_per_token: float
    mass: float
    mass_low: float
    tail_spread: float
    head_bytes: int = 0


def write_teacher_cache(
    teacher: nn.Module,
    examples: Sequence[Example],
    path: str | Path,
    metadata: CacheMetadata,
    *,
    batch_tokens: int = BATCH_TOKENS,
    shard_size: int = SHARD_BYTES,
    show_progress: bool = True,
) -> CacheReport:
    """Runs the teacher over the examples that the cache lacks, and adds them.

    Every process of a distributed run calls this function and computes its share of the batches into shards of its own. An
    interrupted run leaves complete shards. The next run, with any number of processes, computes the rest. A local folder is
    locked meanwhile.

    Args:
        teacher: A causal language model on its device. The function switches it to evaluation mode.
        examples: Mappings with `input_ids` and `span_ids`.
        path: Folder or URL of the cache: new, unfinished or finished.
        metadata: Identifies the cache. An existing cache must have equal metadata.
        batch_tokens: Tokens per batch, padding included.
        shard_size: Bytes after which a shard is written.
        show_progress: Whether the first process of each machine shows a progress bar.

    Returns:
        Statistics of the whole cache.

    Raises:
        InputError: The folder holds another cache or other files, another process writes to it, no example has a supervised
            token, or the teacher's logits are NaN or infinite.
    """
    state, folder = PartialState(), CacheFolder(path)
    observe = metadata.observe
    supervised = (x for x in examples if len(supervised_rows(x["span_ids"], observe)))
    by_digest = {example_digest(x["input_ids"], x["span_ids"]): x for x in supervised}
    if not by_digest:
        raise InputError("data", "examples with reasoning or actions", "none", "Check the data with `sad inspect`.")

    def missing() -> list[str]:
        read_shards(folder, metadata)  # refuses another folder before the lock writes to it
        stack.enter_context(folder.lock())
        written = {entry.digest for header in read_shards(folder, metadata).values() for entry in header.entries}
        if metadata.is_hidden:
            write_head(folder, head_of(teacher, metadata.vocab_size), metadata)
        return [digest for digest in by_digest if digest not in written]

    with contextlib.ExitStack() as stack:
        digests = _run_on_main(state, missing)
        lengths = [len(by_digest[digest]["input_ids"]) for digest in digests]
        batches = batches_by_length(lengths, batch_tokens)[state.process_index :: state.num_processes]
        if batches:
            runner = TeacherRunner(teacher, metadata)
            named = [[(digests[i], by_digest[digests[i]]) for i in batch] for batch in batches]
            _write_shards(runner, named, folder, metadata, shard_size, show_progress and state.is_local_main_process)
        state.wait_for_everyone()
        return _run_on_main(state, lambda: finish_cache(folder, metadata, list(by_digest)))


def _run_on_main(state: PartialState, compute: Callable[[], _Result]) -> _Result:
    """Runs `compute` in the main process. Returns its result, or raises its `InputError`, in all processes."""
    found: list[Any] = [None]
    if state.is_main_process:
        try:
            found = [compute()]
        except InputError as error:
            found = [error]
    broadcast_object_list(found)
    if isinstance(found[0], InputError):
        raise found[0]
    return found[0]


def read_shards(folder: CacheFolder, metadata: CacheMetadata | None = None) -> dict[str, ShardHeader]:
    """Returns the headers of a folder's shards by name, without damaged ones.

    Args:
        folder: The cache.
        metadata: The metadata that all shards must have; None: any.

    Raises:
        InputError: The folder holds other files, or a cache with other metadata.
    """
    headers, others, sizes = {}, [], folder.sizes()
    for name, size in sorted(sizes.items()):
        if SHARD_NAME.fullmatch(name) and size >= 0:
            try:
                headers[name] = read_header(folder, name, size)
            except DamagedFileError:
                continue
        elif name not in (INDEX_NAME, HEAD_NAME, LOCK_NAME) and not PARTIAL_NAME.fullmatch(name):
            others.append(name)
    found = {name: header.metadata for name, header in headers.items()}
    if HEAD_NAME in sizes and not found:  # a run that was interrupted before its first shard, or another program's file
        begun = head_metadata(folder)
        found, others = ({}, [*others, HEAD_NAME]) if begun is None else ({HEAD_NAME: begun}, others)
    if others:
        got = f"{folder.url!r}, which holds {others[0]!r}"
        raise InputError("out", "a new or empty folder, or a teacher cache", got, "Choose another folder.")
    for name, own in found.items() if metadata is not None else ():
        if differ := metadata.differences(own):
            remedy = "Use the same options as the command that made the cache, or choose another folder."
            raise InputError("out", f"a cache with {differ[0]}", f"{differ[1]} in {folder.display_path(name)!r}", remedy)
    return headers


class TeacherRunner:
    """Runs a teacher in evaluation mode and computes the rows of its supervised positions.

    Only supervised positions are projected onto the vocabulary. If the model cannot be split into backbone and head, the
    runner warns and computes the logits of all tokens.

    Args:
        model: A causal language model on its device.
        metadata: What to store. The softmax runs over the first `vocab_size` columns.

    Raises:
        InputError: Hidden states are to be stored, and the model cannot be split.
    """

    def __init__(self, model: nn.Module, metadata: CacheMetadata) -> None:
        self._model, self._metadata, self._observe = model.eval(), metadata, metadata.observe
        self._head = head_of(model, metadata.vocab_size) if metadata.is_hidden else None
        try:
            self._parts = split_model(model)
        except ValueError as error:
            logger.warning("The teacher computes the logits of all tokens because it cannot be split: %s.", error)
            self._parts = None

    @torch.no_grad()
    def run(self, examples: Sequence[Example]) -> Iterator[TeacherRows | HiddenRows]:
        """Yields the rows of each example, from one forward over all of them.

        Args:
            examples: B mappings with `input_ids` and `span_ids`.

        Raises:
            InputError: The teacher's logits are NaN or infinite.
        """
        device = self._model.device
        tokens, labels = ([example[name] for example in examples] for name in ("input_ids", "span_ids"))
        batch = {name: x.to(device) for name, x in pad_batch(tokens, labels, observe=self._observe).items()}
        positions = batch.pop("loss_rows")
        del batch["span_ids"]
        if self._parts is None:
            options = {"use_cache": False} if hasattr(self._model, "config") else {}
            output, head = self._model(**batch, **options).logits, None
        else:
            output, head = self._parts.hidden(batch), self._parts.head()
        output = output.flatten(0, 1)[positions.to(output.device)]
        if self._head is None:
            rows = self._from_logits(output, head)
        else:
            rows = rows_from_hidden(output, self._head, self._metadata)
        if not np.isfinite(rows.entropy).all():
            remedy = "Run it in bfloat16 or float32: --teacher-dtype."
            raise InputError("teacher", "finite logits", "NaN or infinite logits", remedy)
        start = 0
        for example in examples:
            stop = start + len(supervised_rows(example["span_ids"], self._observe))
            yield rows.part(slice(start, stop))
            start = stop

    def _from_logits(self, output: Tensor, head: Head | None) -> TeacherRows:
        """Returns the rows of hidden states (R, H), or of logits (R, V) without a head."""
        parts, columns = [], self._metadata.vocab_size
        for chunk in output.split(max(1, _CHUNK_BYTES // (4 * columns))):
            logits: Tensor = chunk if head is None else head.logits(chunk)
            parts.append(rows_from_logits(logits[:, :columns], self._metadata.top_k))
        return concatenate(parts)


def _write_shards(
    runner: TeacherRunner,
    batches: list[list[tuple[str, Example]]],
    folder: CacheFolder,
    metadata: CacheMetadata,
    shard_size: int,
    show: bool,
) -> None:
    total = sum(len(supervised_rows(example["span_ids"], metadata.observe)) for batch in batches for _, example in batch)
    pending: list[tuple[str, TeacherRows | HiddenRows]] = []
    size = 0
    with tqdm(
        total=total, desc="teacher", unit=" tokens", unit_scale=True, miniters=1, disable=not show, leave=False
    ) as bar:
        for batch in batches:
            for (digest, _), rows in zip(batch, runner.run([example for _, example in batch])):
                pending.append((digest, rows))
                size += rows.size * row_bytes(metadata)
                bar.update(rows.size)
                if size >= shard_size:
                    folder.write(*serialize_shard(pending, metadata))
                    pending, size = [], 0
    if pending:
        folder.write(*serialize_shard(pending, metadata))


def finish_cache(folder: CacheFolder, metadata: CacheMetadata, digests: list[str]) -> CacheReport:
    """Writes the index, deletes damaged and partial files, and computes the statistics."""
    headers = read_shards(folder, metadata)
    written = {entry.digest for header in headers.values() for entry in header.entries}
    if missing := [digest for digest in digests if digest not in written]:
        got = f"{len(missing)} missing after the pass"
        remedy = "Let only one run at a time write into a folder."
        raise InputError(folder.url, "all examples in the written files", got, remedy)
    write_index(folder, headers)
    for name in folder.sizes():
        if name not in headers and name not in (INDEX_NAME, HEAD_NAME, LOCK_NAME):
            folder.remove(name)
    tokens = sum(entry.rows for header in headers.values() for entry in header.entries)
    mass = np.ones(1)
    if not metadata.is_hidden:
        rest = np.concatenate([read_column(folder, name, header, "rest") for name, header in headers.items()])
        mass = 1.0 - rest.astype(np.float64)
    return CacheReport(
        tokens=tokens,
        bytes_per_token=sum(header.size for header in headers.values()) / tokens,
        mass=float(mass.mean()),
        mass_low=float(np.quantile(mass, 0.01)),
        tail_spread=sum(header.tail_spread for header in headers.values()) / tokens,
        head_bytes=folder.sizes()[HEAD_NAME] if metadata.is_hidden else 0,
    )
