"""The cached values of one token, computed from the teacher's logits, and their packed form on disk.

The packed form stores few bytes per row. Ids ascend, so 16 bits of each are stored and, for V > 65,536, the number of ids
below each multiple of 65,536. Log-probabilities are stored as float32, or as uint16 levels below the row's largest:

    d = max log p - log p,   span = the row's largest finite d,   level = round(65534 d / span),   65535 if p = 0

At k = 64 this is ten times more precise than float16 of d, and a hundred times more precise than float16 of log p
(`docs/cache.md`). The largest log-probability is not stored: the top-k probabilities sum to 1 - rest, and `unpack` restores
this sum, so that rounding does not leak into the probability of the rest. A token other than the most likely one has a
level of at least 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sad.teacher_cache.metadata import CacheMetadata

_BLOCK = 1 << 16
_MAX_LEVEL = 65534
_ZERO_PROBABILITY = 65535
_MASS_ROUNDING = 1e-3  # of the sum of a row's probabilities, float32
ENTROPY_ROUNDING = 1e-3  # nats


class TeacherRows(NamedTuple):
    """R rows of the teacher's softmax at temperature 1.

    Attributes:
        ids: (R, k) int32, the top-k columns in ascending order.
        logprobs: (R, k) float32, their log-probabilities.
        rest: (R,) float32, the probability of all other columns together.
        entropy: (R,) float32, the entropy of the whole softmax in nats.
        argmax: (R,) int32, the most likely column, the lowest if several are equal.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    rest: NDArray[np.float32]
    entropy: NDArray[np.float32]
    argmax: NDArray[np.int32]

    @property
    def size(self) -> int:
        """R, the number of rows."""
        return len(self.rest)

    def part(self, rows: slice) -> TeacherRows:
        """Returns a slice of the rows."""
        return TeacherRows(*(x[rows] for x in self))

    def tensors(self) -> dict[str, Tensor]:
        """Returns what the loss needs: `ids`, `logprobs` and `entropy`."""
        return {name: torch.from_numpy(getattr(self, name)) for name in ("ids", "logprobs", "entropy")}


def concatenate(parts: list[TeacherRows]) -> TeacherRows:
    """Returns the rows of all parts in order."""
    return TeacherRows(*map(np.concatenate, zip(*parts)))


def no_rows(metadata: CacheMetadata) -> TeacherRows:
    """Returns `TeacherRows` with R = 0."""
    lists = (np.zeros((0, metadata.top_k), dtype) for dtype in (np.int32, np.float32))
    return TeacherRows(*lists, *(np.zeros(0, dtype) for dtype in (np.float32, np.float32, np.int32)))


def rows_from_logits(logits: Tensor, top_k: int) -> TeacherRows:
    """Computes the cached values of R rows of logits.

    Args:
        logits: (R, V), any floating-point dtype, any device.
        top_k: k <= V.

    Returns:
        Rows in CPU memory. The entropy of a row with NaN or +inf logits is NaN.
    """
    logits = logits.float()
    ids = logits.topk(top_k, dim=-1, sorted=False).indices.sort(dim=-1).values
    argmax = logits.argmax(-1)
    z = logits - logits.amax(-1, keepdim=True)
    p = z.exp()
    total = p.sum(-1)  # pairwise; the sum inside of the CPU's `log_softmax` is off by 1e-4 at V = 50,000
    logprobs = z.gather(1, ids) - total.log()[:, None]
    weighted = z.clamp_(min=torch.finfo(z.dtype).min).mul_(p).sum(-1)  # the clamp avoids 0 * -inf
    entropy = total.log() - weighted / total
    rest = p.scatter_(1, ids, 0.0).sum(-1) / total  # 1 - sum of the top k would lose a rest of 1e-8 to rounding
    parts = (ids.int(), logprobs, rest, entropy, argmax.int())
    return TeacherRows(*(x.cpu().numpy() for x in parts))


def tail_spread(rows: TeacherRows, vocab_size: int) -> NDArray[np.float64]:
    """Returns the part of the KL that the cache cannot show for a student with a uniform tail, (R,) in nats.

    The loss from a cache compares k tokens and one bucket for all others. It is smaller than the KL to the whole teacher by
    rest * KL(teacher's tail || student's tail). This is that difference if the student's tail is uniform.
    """
    tail_columns = vocab_size - rows.ids.shape[1]
    if tail_columns == 0:
        return np.zeros(len(rows.rest))
    log_p, rest = rows.logprobs.astype(np.float64), rows.rest.astype(np.float64)
    topk_sum = np.where(log_p == -np.inf, 0.0, np.exp(log_p) * np.where(log_p == -np.inf, 0.0, log_p)).sum(1)
    tail_sum = -rows.entropy.astype(np.float64) - topk_sum  # sum of p log p over the tail
    uniform = rest * np.log(np.maximum(rest, np.finfo(np.float64).tiny) / tail_columns)
    return np.maximum(tail_sum - uniform, 0.0)


def find_problem(rows: TeacherRows, vocab_size: int) -> str | None:
    """Returns what no softmax over `vocab_size` columns can have, in words; None if the rows are possible."""
    if not len(rows.rest):
        return None
    if rows.ids.min() < 0 or rows.ids.max() >= vocab_size or rows.argmax.min() < 0 or rows.argmax.max() >= vocab_size:
        return f"a column outside of the {vocab_size} columns of the softmax"
    if (rows.ids[:, 1:] <= rows.ids[:, :-1]).any():
        return "columns that do not ascend"
    rest, entropy = rows.rest.astype(np.float64), rows.entropy.astype(np.float64)
    with np.errstate(over="ignore"):
        mass = np.exp(rows.logprobs.astype(np.float64)).sum(1) + rest
    # Negated comparisons, so that NaN is a problem too.
    if not ((rest >= 0) & (rest <= 1 + _MASS_ROUNDING)).all():
        return "a probability of the rest that is not from 0 to 1"
    if not (np.abs(mass - 1) <= _MASS_ROUNDING).all():
        return "probabilities that do not sum to 1"
    if not ((entropy >= -ENTROPY_ROUNDING) & (entropy <= np.log(vocab_size) + ENTROPY_ROUNDING)).all():
        return f"an entropy that is not from 0 to log {vocab_size}"
    return None


class Column(NamedTuple):
    """One packed array: its dtype, and its numbers per row (0: one number and no second dimension)."""

    dtype: np.dtype
    width: int

    def row_bytes(self) -> int:
        """Returns the bytes per row."""
        return self.dtype.itemsize * max(1, self.width)

    def from_bytes(self, data: bytes | NDArray[np.uint8], rows: int) -> NDArray:
        """Returns the array of `rows` rows that has these bytes."""
        return np.frombuffer(data, self.dtype).reshape((rows, self.width) if self.width else (rows,))


def packed_columns(metadata: CacheMetadata) -> dict[str, Column]:
    """Returns the packed arrays by name, in the order of the checksum."""
    k, blocks = metadata.top_k, (metadata.vocab_size - 1) // _BLOCK
    named = {"ids": ("<u2", k)}
    if blocks:
        named["ids_below"] = ("<u4", blocks)
    named |= {"levels": ("<u2", k), "span": ("<f4", 0)} if metadata.dtype == "uint16" else {"logprobs": ("<f4", k)}
    named |= {"rest": ("<f4", 0), "entropy": ("<f4", 0), "argmax": ("<i4", 0)}
    return {name: Column(np.dtype(dtype), width) for name, (dtype, width) in named.items()}


def pack(rows: TeacherRows, metadata: CacheMetadata) -> dict[str, NDArray]:
    """Returns the arrays that `packed_columns` names."""
    packed: dict[str, NDArray] = {"ids": (rows.ids % _BLOCK).astype("<u2")}
    blocks = (metadata.vocab_size - 1) // _BLOCK
    if blocks:
        borders = _BLOCK * np.arange(1, blocks + 1)
        packed["ids_below"] = (rows.ids[:, None, :] < borders[:, None]).sum(-1).astype("<u4")
    if metadata.dtype == "uint16":
        packed["levels"], packed["span"] = _to_levels(rows.logprobs)
    else:
        packed["logprobs"] = rows.logprobs.astype("<f4")
    return packed | {"rest": rows.rest, "entropy": rows.entropy, "argmax": rows.argmax}


def unpack(packed: dict[str, NDArray], metadata: CacheMetadata) -> TeacherRows:
    """Returns the rows that `pack` packed. The log-probabilities are equal up to rounding."""
    ids = packed["ids"].astype(np.int32)
    if "ids_below" in packed:
        index = np.arange(ids.shape[1])
        ids += _BLOCK * (index >= packed["ids_below"][:, :, None].astype(np.int64)).sum(1, dtype=np.int32)
    if metadata.dtype == "uint16":
        logprobs = _from_levels(packed["levels"], packed["span"], packed["rest"])
    else:
        logprobs = np.array(packed["logprobs"], np.float32)
    return TeacherRows(ids, logprobs, *(np.array(packed[name]) for name in ("rest", "entropy", "argmax")))


def _to_levels(logprobs: NDArray[np.float32]) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    below = logprobs.max(1, keepdims=True).astype(np.float64) - logprobs
    span = np.where(np.isinf(below), 0, below).max(1).astype("<f4")
    share = np.where(np.isinf(below), 0, below) / np.maximum(span, np.finfo(np.float32).tiny)[:, None]
    levels = np.clip(np.rint(_MAX_LEVEL * share), below > 0, _MAX_LEVEL)
    levels[np.isinf(below)] = _ZERO_PROBABILITY
    return levels.astype("<u2"), span


def _from_levels(levels: NDArray[np.uint16], span: NDArray[np.float32], rest: NDArray[np.float32]) -> NDArray[np.float32]:
    below = span.astype(np.float64)[:, None] / _MAX_LEVEL * levels
    below[levels == _ZERO_PROBABILITY] = np.inf
    topk_probability = 1.0 - np.minimum(rest.astype(np.float64), 1.0)
    with np.errstate(divide="ignore"):
        largest = np.log(topk_probability / np.exp(-below).sum(1))
    return (largest[:, None] - below).astype(np.float32)
