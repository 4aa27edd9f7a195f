"""A batch of token sequences of different lengths behind one causal language model and one KV cache."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from sad.errors import InputError


class BufferedLayer(DynamicLayer):
    """One layer's keys and values, written in place into a buffer that grows by half when it is full.

    `DynamicLayer` copies the whole cache for each new token; with a small model that is most of the time.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            self._room = (self.keys, self.values)
        used, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if end > self._room[0].shape[2]:
            self._room = tuple(_roomier(view, max(end, used + used // 2) + 16) for view in (self.keys, self.values))
        for room, new in zip(self._room, (key_states, value_states)):
            room[:, :, used:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values

    def keep(self, rows: Tensor, length: int) -> None:
        """Keeps only `rows` (R,), and of each its last `length` columns."""
        self.keys, self.values = (view[rows, :, -length:] for view in (self.keys, self.values))
        self._room = (self.keys, self.values)


def _roomier(view: Tensor, columns: int) -> Tensor:
    room = view.new_empty(*view.shape[:2], columns, view.shape[3])
    room[:, :, : view.shape[2]] = view
    return room


class CachedBatch:
    """Rows of tokens read by a causal language model, each row as if it were alone.

    The prompts are padded on the left, hidden by the attention mask, and each row counts its own positions.
    From then on all rows grow by the same number of tokens, so that there is no further padding.

    Args:
        model: A causal language model of `transformers`, in evaluation mode.
        prompts: Token ids per row, at least one each. They are read at once.

    Attributes:
        logits: (R, V) after each row's last token.

    Raises:
        InputError: With several rows, if the model keeps something else than one full-attention KV
            cache per layer (sliding windows, recurrent states): padding would leak into it.
    """

    def __init__(self, model: Any, prompts: list[list[int]]) -> None:
        plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
        if len(prompts) > 1 and not plain:
            raise InputError(
                "batch_size",
                "1 for a model whose cache is not full attention in every layer",
                str(len(prompts)),
                "Play one task at a time with batch_size=1.",
            )
        self.model = model
        self._cache = Cache(layer_class_to_replicate=BufferedLayer) if plain else DynamicCache(config=model.config)
        accepted = inspect.signature(model.forward).parameters
        everything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
        self._takes_positions = "position_ids" in accepted or everything
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in accepted or everything else {}
        self._cache_argument = "cache" if "cache" in accepted else "past_key_values"  # the older name
        self._last_position = (getattr(model.config, "max_position_embeddings", None) or 2**31) - 1
        width = max(map(len, prompts))
        padding = torch.tensor([width - len(prompt) for prompt in prompts], device=model.device)
        self._real = (torch.arange(width, device=model.device) >= padding[:, None]).long()  # (R, L), 0 = padding
        self._read([[0] * (width - len(prompt)) + prompt for prompt in prompts])

    def feed(self, chunks: list[list[int]]) -> None:
        """Reads further tokens, as many in each row, in one forward."""
        new = self._real.new_ones(len(chunks), len(chunks[0]))
        self._real = torch.cat([self._real, new], dim=1)
        self._read(chunks)

    def keep(self, rows: list[int]) -> None:
        """Keeps only `rows`, in this order, and drops columns that are padding in all of them."""
        kept = torch.tensor(rows, device=self._real.device)
        real = self._real[kept]
        length = int(real.sum(1).max())
        for layer in self._cache.layers if isinstance(self._cache.layers[0], BufferedLayer) else ():
            layer.keep(kept, length)
        self._real, self.logits = real[:, -length:], self.logits[kept]

    def _read(self, chunks: list[list[int]]) -> None:
        ids = torch.tensor(chunks, device=self.model.device)
        options: dict[str, Any] = {**self._options, self._cache_argument: self._cache}
        if self._takes_positions:
            positions = self._real.cumsum(1)[:, -ids.shape[1] :] - 1
            options["position_ids"] = positions.clamp(0, self._last_position)
        output = self.model(input_ids=ids, attention_mask=self._real, use_cache=True, **options)
        self.logits = output.logits[:, -1]
