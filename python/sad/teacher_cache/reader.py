"""Reads a teacher cache in place of a teacher."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sad.errors import InputError
from sad.teacher_cache.folder import CacheFolder
from sad.teacher_cache.index import read_index
from sad.teacher_cache.metadata import example_digest, supervised_rows, tokenizer_digest
from sad.teacher_cache.rows import TeacherRows, concatenate, no_rows
from sad.teacher_cache.shard import Entry, ShardHeader, read_header, read_rows
from sad.trajectories.labels import span_ids_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TeacherCache:
    """A finished cache. Examples are found by what they are, so order and choice of the training data are free.

    Opening reads the index alone. Rows are read when they are asked for, by whichever process asks: local files through
    memory maps, which processes share. What is read is compared with its checksum.

    Args:
        path: The folder or URL.

    Attributes:
        settings: `CacheMetadata`, how it was made.
        rows: How many tokens it holds.

    Raises:
        InputError: There is no finished cache, or it is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._folder = CacheFolder(path, "teacher_cache")
        index = read_index(self._folder)
        self.settings, self.rows = index.settings, index.rows()
        self._sizes = {shard.name: shard.size for shard in index.shards}
        self._places: dict[str, tuple[str, int, Entry]] = {}
        for shard in index.shards:
            first = 0
            for entry in shard.entries:
                self._places[entry.digest] = (shard.name, first, entry)
                first += entry.rows
        self._headers: dict[str, ShardHeader] = {}

    def __str__(self) -> str:
        known = self.settings
        tokens = f"{self.rows} supervised tokens of {len(self)} trajectories"
        return f"{known.top_k} of {known.vocab_size} log-probabilities of {known.teacher_name or 'a teacher'} for {tokens}"

    def __contains__(self, digest: str) -> bool:
        return digest in self._places

    def __len__(self) -> int:
        """How many examples it holds."""
        return len(self._places)

    def read(self, input_ids: Sequence[int], span_ids: Sequence[int]) -> TeacherRows:
        """The teacher at the supervised positions of an example, those whose next token has a span, ascending.

        Args:
            input_ids: (T,)
            span_ids: (T,)

        Raises:
            InputError: The example is not in the cache, or its bytes are damaged.
        """
        name, first, entry = self._place(input_ids, span_ids)
        if name not in self._headers:
            header = read_header(self._folder, name, self._sizes[name])
            if differ := self.settings.differences(header.settings):
                remedy = "Make the cache anew in an empty folder."
                raise InputError(self._folder.where(name), f"a file with {differ[0]}", f"one with {differ[1]}", remedy)
            self._headers[name] = header
        return read_rows(self._folder, name, self._headers[name], first, entry, self.settings)

    def read_all(self, tokens: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> TeacherRows:
        """`read` of several examples, one after the other; those without a supervised position have no rows."""
        pairs = [(ids, kinds) for ids, kinds in zip(tokens, labels) if len(supervised_rows(kinds))]
        return concatenate([no_rows(self.settings.top_k), *(self.read(*pair) for pair in pairs)])

    def entropy_sums(self, dataset: Sequence[Mapping[str, Any]], max_length: int | None) -> Tensor:
        """(n,) float64: the teacher's entropy summed over the supervised positions of each example, nats; from the index."""
        sums = torch.zeros(len(dataset), dtype=torch.float64)
        for number, tokens, labels in _examples(dataset, max_length):
            if len(supervised_rows(labels)):
                sums[number] = self._place(tokens, labels)[2].entropy
        return sums

    def _place(self, input_ids: Sequence[int], span_ids: Sequence[int]) -> tuple[str, int, Entry]:
        """File, first row, and entry of an example."""
        digest = example_digest(input_ids, span_ids)
        if digest not in self._places:
            raise self._missing(f"one of {len(input_ids)} tokens that is not")
        return self._places[digest]

    # --- whether it can stand in for a teacher ---

    def check_examples(self, dataset: Sequence[Mapping[str, Any]], max_length: int | None, name: str = "data") -> None:
        """Every example that has a supervised token is in the cache.

        Args:
            dataset: Examples as the collator takes them.
            max_length: Where they are cut.
            name: What the data are called, for messages.

        Raises:
            InputError: One is not, or the dataset cannot be gone through beforehand.
        """
        if not hasattr(dataset, "__len__"):
            remedy = "Give a dataset with a length, or a live teacher."
            raise InputError(name, "a dataset whose examples can be looked up in the cache", "an iterable one", remedy)
        missing = []
        for number, tokens, labels in _examples(dataset, max_length):
            if len(supervised_rows(labels)) and example_digest(tokens, labels) not in self._places:
                missing.append((number, len(tokens)))
        if missing:
            number, length = missing[0]
            raise self._missing(
                f"{len(missing)} of {len(dataset)} missing, the first example {number}, {length} tokens", name
            )

    def _missing(self, got: str, name: str = "data") -> InputError:
        remedy = (
            "An example is found by its tokens and labels: run `sad cache` with this file, format and max_length into the "
            "same folder, which adds what is missing."
        )
        return InputError(name, f"examples that are in the teacher cache {self.path!r}", got, remedy)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """The cache was made with this tokenizer's vocabulary.

        Raises:
            InputError: It was not.
        """
        if tokenizer_digest(tokenizer) != self.settings.tokenizer:
            remedy = "Choose a student of the teacher's family: its tokens must be the teacher's."
            got = f"another than that of {self.path!r}"
            raise InputError("student's tokenizer", "the tokenizer of the teacher cache", got, remedy)

    def check_columns(self, vocab_size: int) -> None:
        """A student's head of `vocab_size` rows has all columns of the cached softmax.

        Raises:
            InputError: It has fewer.
        """
        if vocab_size < self.settings.vocab_size:
            got = f"{self.settings.vocab_size} in {self.path!r}"
            remedy = f"Make the cache with --vocab-size {vocab_size}: the softmax then runs over the columns that both have."
            raise InputError("teacher_cache", f"a softmax over at most the student's {vocab_size} columns", got, remedy)


def _examples(dataset: Sequence[Mapping[str, Any]], max_length: int | None) -> Iterator[tuple[int, NDArray, NDArray]]:
    """Number, tokens and labels of each example, cut."""
    for number in range(len(dataset)):
        example = dataset[number]
        [labels] = span_ids_of([example], max_length)
        yield number, np.asarray(example["input_ids"])[:max_length], labels


def open_cache(cache: TeacherCache | str | os.PathLike) -> TeacherCache:
    """A cache from its path, or as it is."""
    return cache if isinstance(cache, TeacherCache) else TeacherCache(cache)
