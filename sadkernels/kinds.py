"""Span ids: which loss a token belongs to."""

from __future__ import annotations

from enum import IntEnum


class SpanKind(IntEnum):
    """What a token is part of. Any other id, such as the -100 of a padded label, means `NONE`."""

    NONE = 0
    REASON = 1
    ACT = 2
