"""The size of a decoder. This module imports nothing large, so that option classes can use it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DecoderShape:
    """Size of a decoder.

    Attributes:
        layers: Number of layers.
        width: Hidden size. The feed-forward layers are three times as wide.
        heads: Number of attention heads.
    """

    layers: int
    width: int
    heads: int
