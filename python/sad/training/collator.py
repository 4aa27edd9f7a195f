"""Examples of different lengths to one batch of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sad.errors import InputError


class SpanCollator:
    """Pads on the right, so that padding is never attended to and never supervised.

    Padding gets attention mask 0 and span id 0; which token stands there does not matter, so no tokenizer needs a
    `pad_token`.

    Args:
        pad_token_id: Any id the models know.
        pad_to_multiple_of: Round the batch's length up to a multiple of this (tensor cores like 8).
        max_length: Cut examples beyond this many tokens; None leaves them whole.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(
        self, pad_token_id: int = 0, *, pad_to_multiple_of: int | None = None, max_length: int | None = None
    ) -> None:
        bounds = {"pad_token_id": (pad_token_id, 0), "pad_to_multiple_of": (pad_to_multiple_of, 1)}
        for name, (value, least) in {**bounds, "max_length": (max_length, 1)}.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InputError(name, f"a whole number >= {least}", repr(value), "Choose a value in that range.")
        self.pad_token_id, self.pad_to_multiple_of, self.max_length = pad_token_id, pad_to_multiple_of, max_length

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """One batch.

        Args:
            examples: B mappings with `input_ids` and `span_ids`, sequences or tensors of one length each; other keys
                are left out.

        Returns:
            `input_ids` (B, T) int64, `attention_mask` (B, T) int64, `span_ids` (B, T) int8, T the longest example's
            length rounded up.
        """
        cut = slice(self.max_length)
        rows = [(np.asarray(x["input_ids"])[cut], np.asarray(x["span_ids"])[cut]) for x in examples]
        length = max(len(tokens) for tokens, _ in rows)
        if self.pad_to_multiple_of:
            length += -length % self.pad_to_multiple_of
        shape = (len(rows), length)
        input_ids = np.full(shape, self.pad_token_id, np.int64)
        attention_mask, span_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int8)
        for row, (tokens, labels) in enumerate(rows):
            input_ids[row, : len(tokens)] = tokens
            span_ids[row, : len(tokens)] = labels
            attention_mask[row, : len(tokens)] = 1
        arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "span_ids": span_ids}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
