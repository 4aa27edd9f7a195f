"""Packs several examples into one row, so that a batch has little padding.

The examples of a row are independent: position ids start again at each one, and there is no attention mask. From that,
transformers makes a block-diagonal mask, or calls the variable-length kernels of FlashAttention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sadkernels.spans import SpanKind

PACKINGS = ("auto", "always", "never")
PADDING_LIMIT = 0.1  # share of padding above which "auto" packs
_PADDING = {"token_weights": 0.0, "turn_ids": -1}
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}


def padding_share(lengths: Sequence[int], length: int) -> float:
    """Returns the share of padding in a batch of examples that is padded to `length` tokens."""
    return 1.0 - sum(lengths) / (len(lengths) * length)


def place_examples(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Places examples into rows of `length` tokens: the longest first, each into the first row that has room.

    Returns:
        The indices of the examples of each row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # a stable sort
        row = next((r for r, free in enumerate(room) if free >= lengths[index]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(length)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def pack_batch(batch: dict[str, Tensor], lengths: Sequence[int]) -> dict[str, Tensor]:
    """Packs a padded batch.

    Args:
        batch: The tensors of `sad.SpanCollator` (B, T), padded on the right, and `loss_rows` (M,).
        lengths: Tokens of each example.

    Returns:
        The tensors in R <= B rows of T tokens. `position_ids` replace `attention_mask`; `token_mask` (R, T) says which
        tokens are not padding. The first token of an example has no label, because the row before it is of another example.
        `loss_rows` keep their order, so that the values of a teacher cache still belong to them.
    """
    size, length = batch["input_ids"].shape
    rows = place_examples(lengths, length)
    source = torch.full((len(rows), length), -1, dtype=torch.int64)
    position_ids = torch.zeros((len(rows), length), dtype=torch.int64)
    moved = torch.zeros(size, dtype=torch.int64)  # how far the tokens of an example move in the flattened batch
    for row, indices in enumerate(rows):
        start = 0
        for index in indices:
            end = start + lengths[index]
            position_ids[row, start:end] = torch.arange(lengths[index])
            source[row, start:end] = index * length + position_ids[row, start:end]
            moved[index] = row * length + start - index * length
            start = end
    filled = source >= 0
    packed = {"position_ids": position_ids, "token_mask": filled}
    for name, x in batch.items():
        if name == "loss_rows":
            packed[name] = x + moved[x // length]
        elif name == "turn_ids":  # equal ids of neighboring examples are different turns
            distinct = x * size + torch.arange(size)[:, None]
            packed[name] = torch.where(filled, distinct.flatten()[source.clamp(min=0)], _PADDING[name])
        elif name != "attention_mask":
            padding = _PADDING.get(name, 0)
            packed[name] = torch.where(filled, x.flatten()[source.clamp(min=0)], padding).to(x.dtype)
    packed["span_ids"] = torch.where(position_ids == 0, SpanKind.NONE, packed["span_ids"]).to(batch["span_ids"].dtype)
    return packed


@torch.no_grad()
def why_not_packed(model: nn.Module) -> str | None:
    """Returns why a model cannot read packed rows, or None if it can: its logits on two packed sequences are compared.

    Args:
        model: A causal language model.
    """
    training, device = model.training, next(model.parameters()).device
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    vocabulary = getattr(config, "vocab_size", 2)
    ids = torch.arange(7, device=device)[None] % vocabulary
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]], device=device)
    model.eval()
    try:
        alone = torch.cat([model(input_ids=part).logits for part in (ids[:, :3], ids[:, 3:])], dim=1).float()
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits.float()
    except (TypeError, ValueError, RuntimeError) as error:
        return f"it does not take position ids ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    finally:
        model.train(training)
    tolerance = _TOLERANCE.get(next(model.parameters()).dtype, 5e-2) * max(float(alone.nan_to_num().abs().max()), 1.0)
    if not torch.allclose(packed, alone, rtol=0.0, atol=tolerance, equal_nan=True):
        attention = getattr(model.config, "_attn_implementation", "unknown")
        return f"its logits on packed sequences are not those on separate ones (attention: {attention})"
    return None
