"""Collates examples of different lengths into one batch of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sad.errors import InputError
from sad.teacher_cache.reader import TeacherCache, open_cache
from sad.training.packing import PACKINGS, PADDING_LIMIT, pack_batch, padding_share
from sad.training.token_weights import TURN_BALANCES, turn_weights
from sad.trajectories.batching import pad_batch
from sad.trajectories.labels import span_ids_of

_NOT_MODEL_INPUTS = {
    "span_ids", "loss_rows", "token_weights", "turn_ids", "token_mask", "teacher_ids", "teacher_logprobs", "teacher_entropy",
    "skip_logits",
}  # fmt: skip
_PAD_TURN = -1


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
        turn_balance: "none", "equal" or "decay", as in `sad.SADConfig`. It must be that of the training.
        turn_half_life: As in `sad.SADConfig`.
        packing: "never"; "auto" packs several examples into a row in batches with more than 10 % of padding; "always". Both
            models must keep packed sequences apart, which `sad.SADTrainer` checks.

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
        turn_balance: str = "none",
        turn_half_life: float = 4.0,
        packing: str = "never",
    ) -> None:
        bounds = {"pad_token_id": (pad_token_id, 0), "pad_to_multiple_of": (pad_to_multiple_of, 1)}
        for name, (value, least) in {**bounds, "max_length": (max_length, 1)}.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InputError(name, f"a whole number >= {least}", repr(value), "Choose a value in that range.")
        self.pad_token_id, self.pad_to_multiple_of, self.max_length = pad_token_id, pad_to_multiple_of, max_length
        if turn_balance not in TURN_BALANCES:
            raise InputError(
                "turn_balance", "one of " + ", ".join(TURN_BALANCES), repr(turn_balance), "Choose one of these."
            )
        if packing not in PACKINGS:
            raise InputError("packing", "one of " + ", ".join(PACKINGS), repr(packing), "Choose one of these.")
        self.packing = packing
        self.observe, self.turn_balance, self.turn_half_life = observe, turn_balance, turn_half_life
        self.teacher_cache = None if teacher_cache is None else open_cache(teacher_cache)
        if self.teacher_cache is not None:
            self.teacher_cache.check_observe(observe)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collates one batch.

        Args:
            examples: B mappings with `input_ids` (T,) and either `span_ids` (T,), or `offsets` (T, 2) and `spans`, tuples
                (start, end, kind). Offsets and spans of the whole batch are labelled by one call of
                `sad.span_ids_from_offsets`. All or none may have `token_weights` (T,), numbers >= 0, and `turn_ids` (T,),
                integers: a turn is a run of equal ids. Other keys are ignored.

        Returns:
            `input_ids` (B, T) int64, `attention_mask` (B, T) int64 and `span_ids` (B, T) int8, with T the padded length, and
            `loss_rows` (M,) int64: the positions in the flattened batch whose next token is supervised. With them the loss
            needs no device synchronization. A packed batch has fewer rows, and `position_ids` (B, T) and `token_mask` (B, T)
            instead of `attention_mask`. With weights or a turn balance also `token_weights` (B, T) float32, with turn
            ids also `turn_ids` (B, T) int64. With a cache also the teacher's values at these positions: `teacher_ids` (M, k)
            int32, `teacher_logprobs` (M, k) float32, `teacher_entropy` (M,) float32.

        Raises:
            InputError: An example has no labels, or not one label, weight and turn per token, or is not in the cache.
        """
        labels = span_ids_of(examples, self.max_length)
        rows = [np.asarray(example["input_ids"])[: self.max_length] for example in examples]
        options = {"pad_token_id": self.pad_token_id, "pad_to_multiple_of": self.pad_to_multiple_of, "observe": self.observe}
        batch = pad_batch(rows, labels, **options)
        columns = {"token_weights": (np.float32, 0.0), "turn_ids": (np.int64, _PAD_TURN)}
        for name, (dtype, padding) in columns.items():
            if any(example.get(name) is not None for example in examples):
                batch[name] = self._padded(name, examples, rows, batch["input_ids"].shape, dtype, padding)
        if self.turn_balance != "none":
            half_life = self.turn_half_life if self.turn_balance == "decay" else None
            given, turn_ids = batch.get("token_weights"), batch.get("turn_ids")
            batch["token_weights"] = turn_weights(batch["span_ids"], given, turn_ids, half_life, self.observe)
        lengths = [len(row) for row in rows]
        padding = padding_share(lengths, batch["input_ids"].shape[1])
        if self.packing == "always" or (self.packing == "auto" and padding > PADDING_LIMIT):
            batch = pack_batch(batch, lengths)
        if self.teacher_cache is not None:
            found = self.teacher_cache.read_all(rows, labels)
            batch |= {f"teacher_{name}": torch.from_numpy(getattr(found, name)) for name in ("ids", "logprobs", "entropy")}
        return batch

    def _padded(
        self,
        name: str,
        examples: Sequence[Mapping[str, Any]],
        tokens: Sequence[NDArray],
        shape: tuple[int, int],
        dtype: type,
        padding: float,
    ) -> Tensor:
        """Returns a column of numbers per token, padded (B, T)."""
        padded = np.full(shape, padding, dtype)
        for index, (example, ids) in enumerate(zip(examples, tokens)):
            if example.get(name) is None:
                remedy = f"Give every example {name}, or none."
                raise InputError(f"{name} of example {index} of a batch", f"{len(ids)} numbers", "nothing", remedy)
            values = np.asarray(example[name])[: self.max_length]
            if values.shape != ids.shape:
                remedy = "Give one number per token."
                raise InputError(f"{name} of example {index} of a batch", f"{len(ids)} numbers", str(len(values)), remedy)
            padded[index, : len(ids)] = values
        if name == "token_weights" and not (np.isfinite(padded) & (padded >= 0)).all():
            wrong = padded[~(np.isfinite(padded) & (padded >= 0))][0]
            raise InputError(name, "finite numbers >= 0", str(wrong), "Check the data: 0 leaves a token out.")
        return torch.from_numpy(padded)
