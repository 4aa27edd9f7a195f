"""Examples of different lengths to one batch of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sad.errors import InputError
from sad.teacher_cache.reader import TeacherCache, open_cache
from sad.trajectories.batching import pad_batch
from sad.trajectories.labels import span_ids_of

# What a batch holds besides the model's input.
LABELS = frozenset({"span_ids", "loss_rows", "teacher_ids", "teacher_logprobs", "teacher_entropy"})


class SpanCollator:
    """Pads on the right, so that padding is never attended to and never supervised.

    Padding gets attention mask 0 and span id 0; which token stands there does not matter, so no tokenizer needs a
    `pad_token`.

    Args:
        pad_token_id: Any id the models know.
        pad_to_multiple_of: Round the batch's length up to a multiple of this (tensor cores like 8).
        max_length: Cut examples beyond this many tokens; None leaves them whole.
        teacher_cache: A `sad.TeacherCache` or its path: batches bring along what it holds of them.

    Raises:
        InputError: A number is out of range, or there is no such cache.
    """

    def __init__(
        self,
        pad_token_id: int = 0,
        *,
        pad_to_multiple_of: int | None = None,
        max_length: int | None = None,
        teacher_cache: TeacherCache | str | None = None,
    ) -> None:
        bounds = {"pad_token_id": (pad_token_id, 0), "pad_to_multiple_of": (pad_to_multiple_of, 1)}
        for name, (value, least) in {**bounds, "max_length": (max_length, 1)}.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InputError(name, f"a whole number >= {least}", repr(value), "Choose a value in that range.")
        self.pad_token_id, self.pad_to_multiple_of, self.max_length = pad_token_id, pad_to_multiple_of, max_length
        self.teacher_cache = None if teacher_cache is None else open_cache(teacher_cache)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """One batch.

        Args:
            examples: B mappings with `input_ids`, a sequence or tensor of T, and `span_ids` likewise. Or in place of these
                `offsets` (T, 2) and `spans`, tuples (start, end, kind): then the batch is labelled here, in one call of
                `sad.span_ids_from_offsets`. Other keys are left out.

        Returns:
            `input_ids` (B, T) int64, `attention_mask` (B, T) int64, `span_ids` (B, T) int8, T the longest example's
            length rounded up; and `loss_rows` (M,) int64, the positions in the flattened batch whose next token is
            supervised, so that nobody has to look for them on a GPU. With a cache also the teacher at these M positions:
            `teacher_ids` (M, k) int32, `teacher_logprobs` (M, k) float32, `teacher_entropy` (M,) float32.

        Raises:
            InputError: An example has no labels, or not one for each token, or is not in the cache.
        """
        rows = [np.asarray(example["input_ids"])[: self.max_length] for example in examples]
        labels = span_ids_of(examples, self.max_length)
        batch = pad_batch(rows, labels, pad_token_id=self.pad_token_id, pad_to_multiple_of=self.pad_to_multiple_of)
        if self.teacher_cache is not None:
            found = self.teacher_cache.read_all(rows, labels)
            batch |= {f"teacher_{name}": torch.from_numpy(getattr(found, name)) for name in ("ids", "logprobs", "entropy")}
        return batch
