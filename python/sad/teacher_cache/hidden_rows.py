"""The cached hidden states of one token, and their packed form on disk.

A hidden state is what the teacher's head receives. Together with the head (`sad.teacher_cache.head`) it determines the whole
softmax at any temperature. The module has the functions of `sad.teacher_cache.rows`, for the other kind of cache.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sad.losses import fused_linear_span_kl
from sad.model_parts import Head
from sad.teacher_cache.metadata import CacheMetadata
from sad.teacher_cache.rows import ENTROPY_ROUNDING, Column
from sadkernels.spans import SpanKind


class HiddenRows(NamedTuple):
    """R rows of the teacher's last hidden states.

    Attributes:
        hidden: (R, H) bfloat16, float16 or float32, the input of the head.
        entropy: (R,) float32, the entropy of the whole softmax at temperature 1 in nats.
    """

    hidden: Tensor
    entropy: NDArray[np.float32]

    @property
    def size(self) -> int:
        """R, the number of rows."""
        return len(self.entropy)

    def part(self, rows: slice) -> HiddenRows:
        """Returns a slice of the rows."""
        return HiddenRows(self.hidden[rows], self.entropy[rows])

    def tensors(self) -> dict[str, Tensor]:
        """Returns what the loss needs: `hidden` and `entropy`."""
        return {"hidden": self.hidden, "entropy": torch.from_numpy(self.entropy)}


def concatenate(parts: list[HiddenRows]) -> HiddenRows:
    """Returns the rows of all parts in order."""
    hidden, entropy = zip(*parts)
    return HiddenRows(torch.cat(hidden), np.concatenate(entropy))


def no_rows(metadata: CacheMetadata) -> HiddenRows:
    """Returns `HiddenRows` with R = 0."""
    return HiddenRows(torch.zeros((0, metadata.hidden_size), dtype=_dtype(metadata)), np.zeros(0, np.float32))


def rows_from_hidden(hidden: Tensor, head: Head, metadata: CacheMetadata) -> HiddenRows:
    """Computes the cached values of R hidden states. The entropy is that of the rounded states, which training reads.

    Args:
        hidden: (R, H), any floating-point dtype, any device.
        head: The teacher's head, with at least V columns.
        metadata: The dtype and V.

    Returns:
        Rows in CPU memory. The entropy of a row whose logits are NaN or +inf is NaN.
    """
    hidden = hidden.to(_dtype(metadata))
    return HiddenRows(hidden.cpu(), _entropy(hidden.to(head.weight.dtype), head, metadata.vocab_size).cpu().numpy())


def _entropy(hidden: Tensor, head: Head, columns: int) -> Tensor:
    """Returns log V - KL(softmax || uniform), the entropy (R,) float32: the loss against a student whose logits are 0.

    The loss projects in chunks, and its logits are float32 for a head of 16 bits too.
    """
    divergence = fused_linear_span_kl(
        hidden.new_zeros((len(hidden), 1)),
        head.weight.new_zeros((columns, 1)),
        hidden,
        head.weight,
        torch.full((len(hidden),), SpanKind.REASON, dtype=torch.int8, device=hidden.device),
        teacher_bias=head.bias,
        logit_scale=(1.0, head.scale),
        logit_softcap=(None, head.softcap),
        vocab_size=columns,
        reduction="none",
    )
    return (math.log(columns) - divergence).clamp(min=0.0).float()


def tail_spread(rows: HiddenRows, vocab_size: int) -> NDArray[np.float64]:
    """Returns zeros (R,): the loss misses no part of the teacher's softmax."""
    return np.zeros(rows.size)


def find_problem(rows: HiddenRows, vocab_size: int) -> str | None:
    """Returns what no hidden state of a softmax over `vocab_size` columns can have, in words; None if there is nothing."""
    entropy = rows.entropy.astype(np.float64)
    if not ((entropy >= -ENTROPY_ROUNDING) & (entropy <= np.log(vocab_size) + ENTROPY_ROUNDING)).all():
        return f"an entropy that is not from 0 to log {vocab_size}"
    if rows.hidden.numel() and not torch.stack(torch.aminmax(rows.hidden)).isfinite().all():  # NaN is both; no mask is built
        return "a hidden state that is NaN or infinite"
    return None


def packed_columns(metadata: CacheMetadata) -> dict[str, Column]:
    """Returns the packed arrays by name, in the order of the checksum. Hidden states of 16 bits are stored as their bits."""
    bits = "<f4" if metadata.dtype == "float32" else "<u2"
    return {"hidden": Column(np.dtype(bits), metadata.hidden_size), "entropy": Column(np.dtype("<f4"), 0)}


def pack(rows: HiddenRows, metadata: CacheMetadata) -> dict[str, NDArray]:
    """Returns the arrays that `packed_columns` names."""
    hidden = rows.hidden.contiguous()
    bits = hidden.numpy() if metadata.dtype == "float32" else hidden.view(torch.int16).numpy().view("<u2")
    return {"hidden": bits, "entropy": rows.entropy}


def unpack(packed: dict[str, NDArray], metadata: CacheMetadata) -> HiddenRows:
    """Returns the rows that `pack` packed."""
    bits = np.array(packed["hidden"])
    hidden = torch.from_numpy(bits if metadata.dtype == "float32" else bits.view(np.int16))
    return HiddenRows(hidden.view(_dtype(metadata)), np.array(packed["entropy"]))


def _dtype(metadata: CacheMetadata) -> torch.dtype:
    return getattr(torch, metadata.dtype)
