"""Writes the next turn of token sequences with a model and its KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sad.agents.kv_cache import CachedBatch
from sad.agents.rollout import stop_ids
from sad.agents.sampling import sample_token

_COMPACT_BELOW = 0.85  # share of active rows, as in `sad.rollout`


@dataclass(frozen=True)
class Turn:
    """A turn that the student has to write.

    Args:
        prefix: The token ids before it.
        seed: Seed of the sampling.
        most: Maximum number of tokens.
        ended: Whether the turn is over with these tokens. The engine asks after each token.
    """

    prefix: Sequence[int]
    seed: int
    most: int
    ended: Callable[[Sequence[int]], bool]


def stops_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """Returns the tokens with which a model ends its turn."""
    return frozenset({tokenizer.eos_token_id, *stop_ids(model)} - {None})


@torch.inference_mode()
def write_turns(
    model: Any, tokenizer: Any, turns: Sequence[Turn], *, temperature: float, batch_size: int
) -> list[list[int]]:
    """Returns the tokens that a model writes for each turn, with the stop token if it wrote one.

    The rows of a batch do not affect each other, up to rounding.

    Args:
        model: Causal language model of `transformers`. It is in evaluation mode meanwhile.
        tokenizer: Its tokenizer.
        turns: The turns; each prefix has at least one token.
        temperature: Sampling temperature. 0 is greedy.
        batch_size: Number of parallel turns.
    """
    stops = stops_of(model, tokenizer)
    written: list[list[int]] = []
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(turns), batch_size):
            rows = [_Row(turn, temperature) for turn in turns[start : start + batch_size]]
            _write_batch(model, rows, stops)
            written += [row.written for row in rows]
    finally:
        model.train(was_training)
    return written


class _Row:
    """A turn that is being written."""

    def __init__(self, turn: Turn, temperature: float) -> None:
        self.turn, self.written, self.done = turn, [], False
        self._temperature, self._generator = temperature, torch.Generator().manual_seed(turn.seed)

    def add(self, logits: torch.Tensor, stops: frozenset[int]) -> int:
        """Samples a token from logits (V,), adds it and returns it."""
        token = sample_token(logits, self._temperature, self._generator)
        self.written.append(token)
        self.done = token in stops or len(self.written) >= self.turn.most or self.turn.ended(self.written)
        return token


def _write_batch(model: Any, rows: list[_Row], stops: frozenset[int]) -> None:
    batch = CachedBatch(model, [list(row.turn.prefix) for row in rows])
    while True:
        tokens = [0 if row.done else row.add(logits, stops) for row, logits in zip(rows, batch.logits.cpu())]
        active = [number for number, row in enumerate(rows) if not row.done]
        if not active:
            return
        if len(active) <= _COMPACT_BELOW * len(rows):
            batch.keep(active)
            rows, tokens = ([items[number] for number in active] for items in (rows, tokens))
        batch.feed([[token] for token in tokens])
