"""Reads a teacher cache in place of a teacher."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sad.errors import InputError
from sad.model_parts import Head
from sad.teacher_cache.head import read_head
from sad.teacher_cache.hidden_rows import HiddenRows
from sad.teacher_cache.metadata import example_digest, supervised_rows, tokenizer_digest
from sad.teacher_cache.row_kinds import row_module
from sad.teacher_cache.rows import TeacherRows
from sad.teacher_cache.storage import CacheFolder, Entry, ShardHeader, read_header, read_index, read_rows
from sad.trajectories.labels import span_ids_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TeacherCache:
    """A finished teacher cache.

    The cache looks examples up by a hash of their tokens and labels, so training may use any part of it in any order.
    Opening reads only the index. Each process reads rows when it needs them: local files through memory maps that all
    processes share. A checksum verifies the rows of each example.

    Args:
        path: Folder or URL of the cache.

    Attributes:
        metadata: `CacheMetadata`, the properties of the cache.
        rows: Number of supervised tokens.

    Raises:
        InputError: There is no finished cache, or it is damaged.

    Example:
        >>> cache = sad.TeacherCache("teacher-cache")
        >>> rows = cache.read(example["input_ids"], example["span_ids"])
        >>> rows.ids.shape, rows.logprobs.shape  # (R, k), (R, k)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._folder = CacheFolder(path, "teacher_cache")
        index = read_index(self._folder)
        self.metadata = index.metadata
        self.rows = sum(entry.rows for shard in index.shards for entry in shard.entries)
        self._sizes = {shard.name: shard.size for shard in index.shards}
        self._locations: dict[str, tuple[str, int, Entry]] = {}
        for shard in index.shards:
            first = 0
            for entry in shard.entries:
                self._locations[entry.digest] = (shard.name, first, entry)
                first += entry.rows
        self._headers: dict[str, ShardHeader] = {}

    def __str__(self) -> str:
        k, columns, teacher = self.metadata.top_k, self.metadata.vocab_size, self.metadata.teacher_name or "a teacher"
        tokens = f"{self.rows} supervised tokens of {len(self)} trajectories"
        bounds = "" if self.metadata.exact_entropy else "; teacher entropies in logs and curriculum are lower bounds"
        if self.metadata.is_hidden:
            return f"the head and the hidden states ({self.metadata.dtype}) of {teacher} for {tokens}"
        return f"{k} of {columns} log-probabilities of {teacher} for {tokens}{bounds}"

    @property
    def row_bytes(self) -> int:
        """Bytes in memory of the values of one supervised token."""
        values = row_module(self.metadata).no_rows(self.metadata).tensors().values()
        return sum(math.prod(x.shape[1:]) * x.element_size() for x in values)

    def __contains__(self, digest: str) -> bool:
        return digest in self._locations

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._locations)

    def read(self, input_ids: Sequence[int], span_ids: Sequence[int]) -> TeacherRows | HiddenRows:
        """Returns the teacher's rows at the R supervised positions of an example, in ascending order.

        A position is supervised if its next token is reasoning or action. With `metadata.observe`, observations count too.

        Args:
            input_ids: (T,) token ids.
            span_ids: (T,) labels.

        Raises:
            InputError: The example is not in the cache, or its rows are damaged.
        """
        name, first, entry = self._locate(input_ids, span_ids)
        if name not in self._headers:
            header = read_header(self._folder, name, self._sizes[name])
            if differ := self.metadata.differences(header.metadata):
                remedy = "Write the cache again into an empty folder."
                raise InputError(
                    self._folder.display_path(name), f"a file with {differ[0]}", f"one with {differ[1]}", remedy
                )
            self._headers[name] = header
        return read_rows(self._folder, name, self._headers[name], first, entry)

    def head(self) -> Head:
        """Returns the teacher's head from a cache of hidden states, in CPU memory.

        Raises:
            InputError: The cache has no head, or its file is damaged.
        """
        if not self.metadata.is_hidden:
            got = f"a cache of log-probabilities in {self.path!r}"
            raise InputError("teacher_cache", "a cache of hidden states", got, "Make one with `sad cache --hidden`.")
        return read_head(self._folder, self.metadata)

    def read_all(self, tokens: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]) -> TeacherRows | HiddenRows:
        """Returns the concatenated rows of several examples. Examples without a supervised position have no rows.

        Args:
            tokens: B sequences of token ids.
            labels: B sequences of span ids.

        Raises:
            InputError: An example is not in the cache, or its rows are damaged.
        """
        pairs = [(ids, kinds) for ids, kinds in zip(tokens, labels) if len(self._rows_of(kinds))]
        kind = row_module(self.metadata)
        return kind.concatenate([kind.no_rows(self.metadata), *(self.read(*pair) for pair in pairs)])

    def entropy_sums(self, dataset: Sequence[Mapping[str, Any]], max_length: int | None) -> Tensor:
        """Returns the teacher's entropy summed over the supervised positions of each example, (n,) float64 in nats.

        Reads only the index.

        Args:
            dataset: n examples, as `sad.SpanCollator` takes them.
            max_length: Tokens per example; None: all.

        Raises:
            InputError: An example is not in the cache.
        """
        sums = torch.zeros(len(dataset), dtype=torch.float64)
        for number, tokens, labels in _examples(dataset, max_length):
            if len(self._rows_of(labels)):
                sums[number] = self._locate(tokens, labels)[2].entropy
        return sums

    def _rows_of(self, span_ids: Sequence[int]) -> NDArray:
        return supervised_rows(span_ids, self.metadata.observe)

    def _locate(self, input_ids: Sequence[int], span_ids: Sequence[int]) -> tuple[str, int, Entry]:
        """Returns the shard, the first row in it, and the entry of an example."""
        digest = example_digest(input_ids, span_ids)
        if digest not in self._locations:
            raise self._missing(f"one of {len(input_ids)} tokens that is not")
        return self._locations[digest]

    def check_examples(self, dataset: Sequence[Mapping[str, Any]], max_length: int | None, name: str = "data") -> None:
        """Checks that the cache holds every example that has a supervised token.

        Args:
            dataset: Examples as `sad.SpanCollator` takes them.
            max_length: Tokens per example; None: all.
            name: Name of the dataset for error messages.

        Raises:
            InputError: An example is missing, or the dataset is iterable only.
        """
        if not hasattr(dataset, "__len__"):
            remedy = "Give a dataset with a length, or a teacher model."
            raise InputError(name, "a dataset with a length, so that its examples can be checked", "an iterable one", remedy)
        missing = []
        for number, tokens, labels in _examples(dataset, max_length):
            if len(self._rows_of(labels)) and example_digest(tokens, labels) not in self._locations:
                missing.append((number, len(tokens)))
        if missing:
            number, length = missing[0]
            raise self._missing(
                f"{len(missing)} of {len(dataset)} missing, the first example {number}, {length} tokens", name
            )

    def _missing(self, got: str, name: str = "data") -> InputError:
        remedy = (
            "Run `sad cache` with this file into the same folder: it adds missing examples. --format, --max-length, --long "
            "and --unroll must be the same as in training, because the cache looks examples up by their tokens and labels."
        )
        return InputError(name, f"examples that are in the teacher cache {self.path!r}", got, remedy)

    def check_observe(self, observe: bool) -> None:
        """Checks that the cache has rows of observation tokens if the training needs them, and only then.

        Args:
            observe: Whether lambda_observe of the training is above 0.

        Raises:
            InputError: It does not.
        """
        if observe and not self.metadata.observe:
            expected, got = "a cache with observation tokens, because lambda_observe is above 0", "one without them"
            remedy = "Make another one with `sad cache --observe`, or set lambda_observe to 0."
        elif self.metadata.observe and not observe:
            expected, got = "a cache without observation tokens, because lambda_observe is 0", "one with them"
            remedy = "Make another one without --observe, or set lambda_observe above 0."
        else:
            return
        raise InputError("teacher_cache", expected, f"{got} in {self.path!r}", remedy)

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Checks that the cache was made with the vocabulary of this tokenizer.

        Raises:
            InputError: It was not.
        """
        if tokenizer_digest(tokenizer) != self.metadata.tokenizer:
            remedy = "Choose a student of the teacher's family: both must have the same tokens."
            got = f"another than that of {self.path!r}"
            raise InputError("student's tokenizer", "the tokenizer of the teacher cache", got, remedy)

    def check_columns(self, vocab_size: int) -> None:
        """Checks that a student's head with `vocab_size` rows has all columns of the cached softmax.

        Raises:
            InputError: The head has fewer rows.
        """
        if vocab_size < self.metadata.vocab_size:
            got = f"{self.metadata.vocab_size} in {self.path!r}"
            remedy = f"Make the cache with --vocab-size {vocab_size}: its softmax then covers the columns of both models."
            raise InputError("teacher_cache", f"a softmax over at most the student's {vocab_size} columns", got, remedy)


def _examples(dataset: Sequence[Mapping[str, Any]], max_length: int | None) -> Iterator[tuple[int, NDArray, NDArray]]:
    """Yields the number, the tokens and the labels of each example, truncated to `max_length`."""
    for number in range(len(dataset)):
        example = dataset[number]
        [labels] = span_ids_of([example], max_length)
        yield number, np.asarray(example["input_ids"])[:max_length], labels


def open_cache(cache: TeacherCache | str | os.PathLike) -> TeacherCache:
    """Returns the cache at a path. An open cache is returned unchanged."""
    return cache if isinstance(cache, TeacherCache) else TeacherCache(cache)
