"""Collates examples of different lengths into one batch of tensors."""

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

_NOT_MODEL_INPUTS = {"span_ids", "loss_rows", "teacher_ids", "teacher_logprobs", "teacher_entropy", "skip_logits"}


def model_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of a batch that a model receives."""
    return {name: x for name, x in inputs.items() if name not in _NOT_MODEL_INPUTS}


class SpanCollator:
    """Pads examples on the right. Padding has attention mask 0 and span id 0, so no tokenizer needs a `pad_token`.

    Args:
        pad_token_id: Token id of the padding; any id of the vocabulary.
        pad_to_multiple_of: Rounds the length of a batch up to a multiple of this number. Tensor cores prefer 8.
        max_length: Maximum number of tokens per example; longer ones are truncated. Default: no limit.
        teacher_cache: A `sad.TeacherCache` or its path. Its values are added to each batch.
        observe: Whether observation tokens are supervised. It must be true for a training with lambda_observe > 0, and only
            then.

    Raises:
        InputError: A number is out of range, or the cache does not exist.
    """

    def __init__(
        self,
        pad_token_id: int = 0,
        *,
        pad_to_multiple_of: int | None = None,
        max_length: int | None = None,
        teacher_cache: TeacherCache | str | None = None,
        observe: bool = False,
    ) -> None:
        bounds = {"pad_token_id": (pad_token_id, 0), "pad_to_multiple_of": (pad_to_multiple_of, 1)}
        for name, (value, least) in {**bounds, "max_length": (max_length, 1)}.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InputError(name, f"a whole number >= {least}", repr(value), "Choose a value in that range.")
        self.pad_token_id, self.pad_to_multiple_of, self.max_length = pad_token_id, pad_to_multiple_of, max_length
        self.observe = observe
        self.teacher_cache = None if teacher_cache is None else open_cache(teacher_cache)
        if self.teacher_cache is not None:
            self.teacher_cache.check_observe(observe)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collates one batch.

        Args:
            examples: B mappings with `input_ids` (T,) and either `span_ids` (T,), or `offsets` (T, 2) and `spans`, tuples
                (start, end, kind). Offsets and spans of the whole batch are labelled by one call of
                `sad.span_ids_from_offsets`. Other keys are ignored.

        Returns:
            `input_ids` (B, T) int64, `attention_mask` (B, T) int64 and `span_ids` (B, T) int8, with T the padded length, and
            `loss_rows` (M,) int64: the positions in the flattened batch whose next token is supervised. With them the loss
            needs no device synchronization. With a cache also the teacher's values at these positions: `teacher_ids` (M, k)
            int32, `teacher_logprobs` (M, k) float32, `teacher_entropy` (M,) float32.

        Raises:
            InputError: An example has no labels, or not one per token, or is not in the cache.
        """
        rows = [np.asarray(example["input_ids"])[: self.max_length] for example in examples]
        labels = span_ids_of(examples, self.max_length)
        options = {"pad_token_id": self.pad_token_id, "pad_to_multiple_of": self.pad_to_multiple_of, "observe": self.observe}
        batch = pad_batch(rows, labels, **options)
        if self.teacher_cache is not None:
            found = self.teacher_cache.read_all(rows, labels)
            batch |= {f"teacher_{name}": torch.from_numpy(getattr(found, name)) for name in ("ids", "logprobs", "entropy")}
        return batch
