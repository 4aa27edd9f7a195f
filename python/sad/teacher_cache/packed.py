"""The rows of a cache as arrays of few bytes.

Ids are ascending, so 16 bits of each are kept, and for vocabularies above 65,536 how many of a row's ids lie below each
multiple of it. Log-probabilities are kept as they are ("float32"), or ("uint16") as how far each is below the largest:

    level = round(65534 d / span),   d = max log p - log p,   span = largest d of the row,   65535 where p = 0

which is ten times closer than float16 of d, and a hundred times closer than float16 of log p. Neither the largest
log-probability nor the sum need be kept: the listed add up to 1 - rest, and are made to again when they are read, so that
what is left for the tail is not made of rounding. A token that is not the likeliest has a level above 0, however close.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sad.teacher_cache.metadata import CacheMetadata
from sad.teacher_cache.rows import TeacherRows

_BLOCK = 1 << 16
_LEVELS = 65534
_NEVER = 65535


class Column(NamedTuple):
    """One array of a shard: its dtype, and how many numbers a row has in it (0: one number and no dimension)."""

    dtype: np.dtype
    width: int

    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * max(1, self.width)


def columns(settings: CacheMetadata) -> dict[str, Column]:
    """The arrays of a shard by name, in the order in which an example's bytes are summed."""
    k, blocks = settings.top_k, (settings.vocab_size - 1) // _BLOCK
    named = {"ids": ("<u2", k)}
    if blocks:
        named["ids_below"] = ("<u4", blocks)
    named |= {"levels": ("<u2", k), "span": ("<f4", 0)} if settings.dtype == "uint16" else {"logprobs": ("<f4", k)}
    named |= {"rest": ("<f4", 0), "entropy": ("<f4", 0), "argmax": ("<i4", 0)}
    return {name: Column(np.dtype(dtype), width) for name, (dtype, width) in named.items()}


def row_bytes(settings: CacheMetadata) -> int:
    """Bytes of a row."""
    return sum(column.row_bytes() for column in columns(settings).values())


def pack(rows: TeacherRows, settings: CacheMetadata) -> dict[str, NDArray]:
    """`rows` as the arrays that `columns` names."""
    packed: dict[str, NDArray] = {"ids": (rows.ids % _BLOCK).astype("<u2")}
    blocks = (settings.vocab_size - 1) // _BLOCK
    if blocks:
        borders = _BLOCK * np.arange(1, blocks + 1)
        packed["ids_below"] = (rows.ids[:, None, :] < borders[:, None]).sum(-1).astype("<u4")
    if settings.dtype == "uint16":
        packed["levels"], packed["span"] = _levels(rows.logprobs)
    else:
        packed["logprobs"] = rows.logprobs.astype("<f4")
    return packed | {"rest": rows.rest, "entropy": rows.entropy, "argmax": rows.argmax}


def unpack(packed: dict[str, NDArray], settings: CacheMetadata) -> TeacherRows:
    """What `pack` was given, log-probabilities to rounding."""
    ids = packed["ids"].astype(np.int32)
    if "ids_below" in packed:
        place = np.arange(ids.shape[1])
        ids += _BLOCK * (place >= packed["ids_below"][:, :, None].astype(np.int64)).sum(1, dtype=np.int32)
    if settings.dtype == "uint16":
        logprobs = _from_levels(packed["levels"], packed["span"], packed["rest"])
    else:
        logprobs = np.array(packed["logprobs"], np.float32)
    return TeacherRows(ids, logprobs, *(np.array(packed[name]) for name in ("rest", "entropy", "argmax")))


def _levels(logprobs: NDArray[np.float32]) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    below = logprobs.max(1, keepdims=True).astype(np.float64) - logprobs
    span = np.where(np.isinf(below), 0, below).max(1).astype("<f4")
    share = np.where(np.isinf(below), 0, below) / np.maximum(span, np.finfo(np.float32).tiny)[:, None]
    levels = np.clip(np.rint(_LEVELS * share), below > 0, _LEVELS)
    levels[np.isinf(below)] = _NEVER
    return levels.astype("<u2"), span


def _from_levels(levels: NDArray[np.uint16], span: NDArray[np.float32], rest: NDArray[np.float32]) -> NDArray[np.float32]:
    below = span.astype(np.float64)[:, None] / _LEVELS * levels
    below[levels == _NEVER] = np.inf
    listed = 1.0 - np.minimum(rest.astype(np.float64), 1.0)
    with np.errstate(divide="ignore"):
        total = np.log(listed / np.exp(-below).sum(1))
    return (total[:, None] - below).astype(np.float32)
