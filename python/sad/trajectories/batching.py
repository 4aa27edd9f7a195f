"""Groups examples by length and pads them to tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sad.errors import InputError
from sad.trajectories.spans import is_supervised


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Groups examples of similar length into batches.

    Args:
        lengths: Tokens per example.
        max_tokens: Largest number of tokens per batch, padding included. A longer example is a batch of its own.

    Returns:
        Indices of each batch. The longest examples come first. The result is a pure function of the arguments, so it is
        the same on every process.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # a stable sort
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def pad_batch(
    tokens: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    *,
    pad_token_id: int = 0,
    pad_to_multiple_of: int | None = None,
    observe: bool = False,
) -> dict[str, Tensor]:
    """Pads B examples on the right. Padding has attention mask 0 and span id 0.

    Args:
        tokens: B sequences of token ids.
        labels: B sequences of span ids, each as long as its tokens.
        pad_token_id: Token id of the padding.
        pad_to_multiple_of: Rounds the padded length T up to a multiple of this number.
        observe: Whether observation tokens are supervised.

    Returns:
        `input_ids` (B, T) int64, `attention_mask` (B, T) int64, `span_ids` (B, T) int8 and `loss_rows` (M,) int64: the
        positions in the flattened batch whose next token is supervised, ascending.

    Raises:
        InputError: An example does not have one label per token.
    """
    length = max(map(len, tokens))
    if pad_to_multiple_of:
        length += -length % pad_to_multiple_of
    shape = (len(tokens), length)
    input_ids = np.full(shape, pad_token_id, np.int64)
    attention_mask, span_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int8)
    for row, (ids, kinds) in enumerate(zip(tokens, labels)):
        if len(ids) != len(kinds):
            got = f"{len(kinds)} labels or offsets"
            raise InputError(f"example {row}", f"{len(ids)}, one per token", got, "Encode it with `sad.encode`.")
        input_ids[row, : len(ids)] = ids
        span_ids[row, : len(ids)] = kinds
        attention_mask[row, : len(ids)] = 1
    next_ids = np.pad(span_ids[:, 1:], ((0, 0), (0, 1)))
    loss_rows = np.flatnonzero(is_supervised(next_ids, observe)).astype(np.int64)
    arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "span_ids": span_ids, "loss_rows": loss_rows}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
