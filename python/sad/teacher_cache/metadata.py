"""What makes one teacher cache another: every file of a cache carries it, and nothing is mixed or read under another."""

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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = "sad teacher cache"
VERSION = 1
DTYPES = ("uint16", "float32")


@dataclass(frozen=True)
class CacheMetadata:
    """How a cache was made.

    Args:
        top_k: Tokens listed per row.
        vocab_size: Columns of the teacher's softmax, V.
        dtype: How log-probabilities are stored, a name in `DTYPES`.
        tokenizer: `tokenizer_digest` of the tokenizer.
        teacher: `sad.model_parts.model_digest` of the teacher.
        teacher_dtype: Of its weights.
        teacher_name: What it is called; for people.
    """

    top_k: int
    vocab_size: int
    dtype: str
    tokenizer: str
    teacher: str
    teacher_dtype: str
    teacher_name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError("dtype", "one of " + ", ".join(DTYPES), repr(self.dtype), "Choose one of these.")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or not 1 <= self.top_k <= self.vocab_size:
            expected = f"from 1 to the {self.vocab_size} columns of the softmax"
            raise InputError("top_k", expected, repr(self.top_k), "64 is usual.")

    def record(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}

    def differences(self, other: CacheMetadata) -> tuple[str, str] | None:
        """The fields in which `other` is not the same, in words, ours and its; None if there are none."""
        names = [item.name for item in dataclasses.fields(self) if item.compare]
        names = [name for name in names if getattr(self, name) != getattr(other, name)]
        ours, theirs = (", ".join(f"{name} {_short(getattr(x, name))}" for name in names) for x in (self, other))
        return (ours, theirs) if names else None


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def read_metadata(where: str, record: Any) -> CacheMetadata:
    """`CacheMetadata` from what `record` made.

    Args:
        where: The file, for messages.
        record: Parsed JSON.

    Raises:
        InputError: It is none of a teacher cache, or of another version of the format.
    """
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        raise InputError(where, "a file of a teacher cache", "one of something else", "Give a folder made by `sad cache`.")
    if record.get("version") != VERSION:
        remedy = "Make the cache anew, or use the version of sad that made it."
        raise InputError(where, f"version {VERSION} of the format", repr(record.get("version")), remedy)
    try:
        return CacheMetadata(**{item.name: record[item.name] for item in dataclasses.fields(CacheMetadata)})
    except (KeyError, TypeError, InputError) as error:
        raise InputError(where, "the settings of a teacher cache", str(error), "Make the cache anew.") from error


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all tokens and their ids. Tokenizers with one vocabulary that cut texts otherwise give other examples."""
    entries = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def example_digest(input_ids: ArrayLike, span_ids: ArrayLike) -> str:
    """The name of an example in a cache: a hash of its tokens and labels, 32 hexadecimal digits."""
    tokens, labels = np.asarray(input_ids, dtype="<i8"), np.asarray(span_ids, dtype=np.int8)
    whole = len(tokens).to_bytes(8, "little") + tokens.tobytes() + labels.tobytes()
    return hashlib.sha256(whole).hexdigest()[:32]


def supervised_rows(span_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """The positions of one example whose next token is reasoning or action, ascending: its rows in a cache."""
    following = np.asarray(span_ids, dtype=np.int8)[1:]
    return np.flatnonzero((following == 1) | (following == 2))
