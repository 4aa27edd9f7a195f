"""Identifies a teacher cache and its examples. Every file of a cache stores the metadata, so caches never mix."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from sad.errors import InputError
from sad.model_parts import model_digest
from sad.teacher_cache.options import DTYPES, check_storage
from sad.trajectories.spans import is_supervised

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

FORMAT = "sad teacher cache"
VERSION = 2
TOP_K, HIDDEN = "top-k", "hidden"  # kinds of caches


@dataclass(frozen=True)
class CacheMetadata:
    """The properties that all files of a cache share.

    Args:
        top_k: k, log-probabilities per row. 0 in a cache of hidden states.
        vocab_size: V, columns of the teacher's softmax.
        dtype: Storage of the log-probabilities ("uint16" or "float32") or of the hidden states ("bfloat16", "float16" or
            "float32").
        tokenizer: `tokenizer_digest` of the tokenizer.
        teacher: `sad.model_parts.model_digest` of the teacher.
        teacher_dtype: Dtype of the teacher's weights.
        teacher_name: Name of the teacher for messages. It does not take part in comparisons.
        exact_entropy: Whether the entropies are those of the whole softmax. Otherwise only the top k are known, and the
            entropies are lower bounds.
        observe: Whether the cache has rows of observation tokens, for a training with lambda_observe > 0.
        kind: `TOP_K` or `HIDDEN`.
        hidden_size: H, numbers per hidden state. 0 in a cache of log-probabilities.
        head: `sad.teacher_cache.head.head_digest` of the teacher's head. Empty in a cache of log-probabilities.

    Raises:
        InputError: A value is out of range.
    """

    top_k: int
    vocab_size: int
    dtype: str
    tokenizer: str
    teacher: str
    teacher_dtype: str
    teacher_name: str = field(default="", compare=False)
    exact_entropy: bool = True
    observe: bool = False
    kind: str = TOP_K
    hidden_size: int = 0
    head: str = ""

    def __post_init__(self) -> None:
        if self.kind not in (TOP_K, HIDDEN):
            raise InputError("kind", f"{TOP_K} or {HIDDEN}", repr(self.kind), "Choose one of these.")
        check_storage(self.dtype, self.is_hidden)
        if self.is_hidden:
            if isinstance(self.hidden_size, bool) or not isinstance(self.hidden_size, int) or self.hidden_size < 1:
                raise InputError("hidden_size", "a whole number >= 1", repr(self.hidden_size), "Give that of the teacher.")
            return
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or not 1 <= self.top_k <= self.vocab_size:
            expected = f"from 1 to the {self.vocab_size} columns of the softmax"
            raise InputError("top_k", expected, repr(self.top_k), "64 is usual.")

    @property
    def is_hidden(self) -> bool:
        """Whether the rows are hidden states."""
        return self.kind == HIDDEN

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON object that files store."""
        record = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        if self.exact_entropy:
            del record["exact_entropy"]
        if not self.observe:  # caches from before this field stay equal to new ones
            del record["observe"]
        for name in ("top_k",) if self.is_hidden else ("kind", "hidden_size", "head"):
            del record[name]
        return record

    def differences(self, other: CacheMetadata) -> tuple[str, str] | None:
        """Returns the differing fields in words, (own values, values of `other`); None if there are none."""
        names = [item.name for item in dataclasses.fields(self) if item.compare]
        names = [name for name in names if getattr(self, name) != getattr(other, name)]
        if "kind" in names:  # all else that differs follows from it
            names = ["kind"]
        own, others = (", ".join(f"{name} {_shorten(getattr(x, name))}" for name in names) for x in (self, other))
        return (own, others) if names else None


def _shorten(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def metadata_from_json(file: str, record: Any) -> CacheMetadata:
    """Returns the metadata that `CacheMetadata.to_json` stored.

    Args:
        file: The file's path for error messages.
        record: The parsed JSON.

    Raises:
        InputError: The JSON does not belong to a teacher cache, or has another version of the format.
    """
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        raise InputError(file, "a file of a teacher cache", "something else", "Give a folder made by `sad cache`.")
    if record.get("version") != VERSION:
        remedy = "Write the cache again, or use the version of sad that wrote it."
        raise InputError(file, f"version {VERSION} of the format", repr(record.get("version")), remedy)
    record = {"exact_entropy": True, **record}
    try:
        absent = {"observe": False, "kind": TOP_K, "hidden_size": 0, "head": ""}
        values = absent | ({"top_k": 0} if record.get("kind") == HIDDEN else {}) | record
        return CacheMetadata(**{item.name: values[item.name] for item in dataclasses.fields(CacheMetadata)})
    except (KeyError, TypeError, InputError) as error:
        raise InputError(file, "the metadata of a teacher cache", str(error), "Write the cache again.") from error


def cache_metadata(
    teacher: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    top_k: int = 64,
    dtype: str = DTYPES[0],
    vocab_size: int | None = None,
    observe: bool = False,
    name: str = "",
) -> CacheMetadata:
    """Returns the identity of a cache of a teacher in memory, for `sad.write_teacher_cache`.

    Args:
        teacher: A causal language model of `transformers`.
        tokenizer: Its tokenizer.
        top_k: k, log-probabilities per row.
        dtype: Storage of the log-probabilities: "uint16" or "float32".
        vocab_size: V, columns of the softmax. Default: all columns of the teacher's head. Pass the size of the student's
            head if that is smaller.
        observe: Whether to store observation tokens too, for a training with lambda_observe > 0.
        name: Name of the teacher for messages.

    Raises:
        InputError: `dtype` or `top_k` is out of range.
    """
    return CacheMetadata(
        top_k=top_k,
        vocab_size=logit_columns(teacher) if vocab_size is None else vocab_size,
        dtype=dtype,
        tokenizer=tokenizer_digest(tokenizer),
        teacher=model_digest(teacher),
        teacher_dtype=str(teacher.dtype).removeprefix("torch."),
        teacher_name=name,
        observe=observe,
    )


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a hash of all tokens and their ids.

    Tokenizers with the same vocabulary but other merges produce other token ids, so `example_digest` tells them apart.
    """
    entries = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def example_digest(input_ids: ArrayLike, span_ids: ArrayLike) -> str:
    """Returns the key of an example in a cache: a hash of its tokens and labels, 32 hexadecimal digits."""
    tokens, labels = np.asarray(input_ids, dtype="<i8"), np.asarray(span_ids, dtype=np.int8)
    data = len(tokens).to_bytes(8, "little") + tokens.tobytes() + labels.tobytes()
    return hashlib.sha256(data).hexdigest()[:32]


def supervised_rows(span_ids: Sequence[int] | np.ndarray, observe: bool = False) -> np.ndarray:
    """Returns the positions of an example whose next token is supervised, ascending: its rows in a cache.

    Args:
        span_ids: (T,) labels.
        observe: Whether observation tokens are supervised.
    """
    return np.flatnonzero(is_supervised(np.asarray(span_ids, dtype=np.int8)[1:], observe))


def logit_columns(model: nn.Module) -> int:
    """Returns V, the columns of the logits of a `transformers` model, or of a PEFT model of one."""
    return int(model.config.get_text_config().vocab_size)
