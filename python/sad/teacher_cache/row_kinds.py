"""The kinds of rows: top-k log-probabilities (`rows`) and hidden states (`hidden_rows`).

Both modules have the same functions.
"""

from __future__ import annotations

from types import ModuleType

from sad.teacher_cache import hidden_rows, rows
from sad.teacher_cache.metadata import CacheMetadata


def row_module(metadata: CacheMetadata) -> ModuleType:
    """Returns the module that packs, unpacks and checks the rows of a cache."""
    return hidden_rows if metadata.is_hidden else rows


def row_bytes(metadata: CacheMetadata) -> int:
    """Returns the bytes per row on disk."""
    return sum(column.row_bytes() for column in row_module(metadata).packed_columns(metadata).values())
