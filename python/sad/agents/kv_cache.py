"""Batched decoding with one KV cache for token sequences of different lengths."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from sad.errors import InputError


class BufferedLayer(DynamicLayer):
    """The keys and values of one layer in a preallocated buffer that grows by half when it is full.

    `DynamicLayer` copies the whole cache for each new token. With a small model this copy dominates the time per token.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            self._buffers = (self.keys, self.values)
        used, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if end > self._buffers[0].shape[2]:
            self._buffers = tuple(_grown(view, max(end, used + used // 2) + 16) for view in (self.keys, self.values))
        for buffer, new in zip(self._buffers, (key_states, value_states)):
            buffer[:, :, used:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def keep(self, rows: Tensor, length: int) -> None:
        """Keeps only `rows` (R,) and their last `length` columns."""
        self.keys, self.values = (view[rows, :, -length:] for view in (self.keys, self.values))
        self._buffers = (self.keys, self.values)


def attends_to_earlier_tokens(config: Any) -> bool:
    """Whether all layers are attention to all earlier tokens, or to those in a sliding window.

    Their masks depend on distances between tokens only, so padding on the left changes nothing. The borders of chunks
    (Llama 4) are absolute.
    """
    layers = DynamicCache(config=config).layers
    chunked = getattr(config.get_text_config(decoder=True), "attention_chunk_size", None) is not None
    return not chunked and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _grown(view: Tensor, columns: int) -> Tensor:
    buffer = view.new_empty(*view.shape[:2], columns, view.shape[3])
    buffer[:, :, : view.shape[2]] = view
    return buffer


class CachedBatch:
    """Token sequences that a causal language model reads as a batch. The rows do not affect each other.

    The prompts are padded on the left. The attention mask hides the padding, and each row has its own positions. All
    rows then grow by the same number of tokens, so no further padding is needed.

    Args:
        model: Causal language model of `transformers`, in evaluation mode.
        prompts: Token ids per row, at least one per row. The model reads them immediately.

    Attributes:
        logits: (R, V) after the last token of each row.

    Raises:
        InputError: There are several rows, and the model has layers that are not attention over earlier tokens (recurrent
            states, chunks). Padding would change the result of such a model.
    """

    def __init__(self, model: Any, prompts: list[list[int]]) -> None:
        attends = attends_to_earlier_tokens(model.config)
        if len(prompts) > 1 and not attends:
            expected = "1 for a model with layers that are not full or sliding-window attention"
            raise InputError("batch_size", expected, str(len(prompts)), "Set batch_size=1.")
        self.model = model
        if attends:
            # Sliding layers keep all tokens too: the mask of the model hides those outside of the window.
            self._cache = Cache(layer_class_to_replicate=BufferedLayer)
        else:
            self._cache = DynamicCache(config=model.config)
        parameters = inspect.signature(model.forward).parameters
        accepts_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._needs_positions = "position_ids" in parameters or accepts_any
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in parameters or accepts_any else {}
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"  # the older name
        self._last_position = (getattr(model.config, "max_position_embeddings", None) or 2**31) - 1
        width = max(map(len, prompts))
        padding = torch.tensor([width - len(prompt) for prompt in prompts], device=model.device)
        self._attention_mask = (torch.arange(width, device=model.device) >= padding[:, None]).long()  # (R, L)
        self._forward([[0] * (width - len(prompt)) + prompt for prompt in prompts])

    def feed(self, chunks: list[list[int]]) -> None:
        """Reads the next tokens in one forward pass. All rows must get the same number of tokens."""
        new = self._attention_mask.new_ones(len(chunks), len(chunks[0]))
        self._attention_mask = torch.cat([self._attention_mask, new], dim=1)
        self._forward(chunks)

    def keep(self, rows: list[int]) -> None:
        """Keeps only `rows`, in this order, and drops the columns that are padding in all of them."""
        kept = torch.tensor(rows, device=self._attention_mask.device)
        mask = self._attention_mask[kept]
        length = int(mask.sum(1).max())
        for layer in self._cache.layers if isinstance(self._cache.layers[0], BufferedLayer) else ():
            layer.keep(kept, length)
        self._attention_mask, self.logits = mask[:, -length:], self.logits[kept]

    def _forward(self, chunks: list[list[int]]) -> None:
        ids = torch.tensor(chunks, device=self.model.device)
        options: dict[str, Any] = {**self._options, self._cache_argument: self._cache}
        if self._needs_positions:
            positions = self._attention_mask.cumsum(1)[:, -ids.shape[1] :] - 1
            options["position_ids"] = positions.clamp(0, self._last_position)
        output = self.model(input_ids=ids, attention_mask=self._attention_mask, use_cache=True, **options)
        self.logits = output.logits[:, -1]
