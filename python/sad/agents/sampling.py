"""Samples the next token of a sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def sample_token(
    logits: Tensor, temperature: float, generator: torch.Generator, allowed: Sequence[int] | None = None
) -> int:
    """Returns the next token: the argmax, or with a temperature a sample of softmax(logits / temperature).

    Args:
        logits: (V,) on the CPU.
        temperature: 0 is greedy.
        generator: Random generator of the sequence, on the CPU.
        allowed: Token ids to choose from. None: all.
    """
    if temperature > 0:
        uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
        gumbel = -(-uniform.clamp_min(1e-300).log()).log()  # the argmax of logits + Gumbel noise is a sample
        logits = logits.double() / temperature + gumbel
    return int(logits.argmax()) if allowed is None else allowed[int(logits[allowed].argmax())]
