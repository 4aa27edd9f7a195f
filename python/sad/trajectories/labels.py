"""Returns the span ids of training examples, or computes them from offsets and spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sad.errors import InputError
from sad.trajectories.spans import span_ids_from_offsets


def span_ids_of(examples: Sequence[Mapping[str, Any]], max_length: int | None = None) -> list[NDArray[np.int8]]:
    """Returns the span ids of every example.

    Args:
        examples: Mappings with `span_ids` (T,), or with `offsets` (T, 2), the character ranges of the tokens, and `spans`
            (S, 3), rows of (start, end, kind) in any order. `span_ids` take precedence. All offsets and spans are labelled
            by one call of the op.
        max_length: Maximum number of tokens per example. Default: no limit.

    Returns:
        One array (T,) per example.

    Raises:
        InputError: An example has neither, or they have the wrong shape.
        ValueError: Spans overlap or are not valid ranges.
    """
    for index, example in enumerate(examples):
        if not isinstance(example, Mapping) or example.get("input_ids") is None:
            got = ", ".join(map(str, example)) if isinstance(example, Mapping) else type(example).__name__
            remedy = "Encode the trajectories first: sad.encode_all(trajectories, tokenizer).examples."
            raise InputError(f"example {index}", "input_ids and span_ids", got, remedy)
    labels: list[NDArray[np.int8] | None] = [
        None if example.get("span_ids") is None else np.asarray(example["span_ids"], dtype=np.int8)[:max_length]
        for example in examples
    ]
    missing = [index for index, row in enumerate(labels) if row is None]
    if not missing:
        return labels
    offsets = [_rows_of(examples[i], i, "offsets", 2)[:max_length] for i in missing]
    spans = [_rows_of(examples[i], i, "spans", 3) for i in missing]
    padded = np.zeros((len(missing), max(map(len, offsets)), 2), np.int64)
    for row, ranges in zip(padded, offsets):
        row[: len(ranges)] = ranges
    counts = [len(row) for row in spans]
    table = np.concatenate(spans)
    order = np.lexsort((table[:, 1], table[:, 0], np.repeat(np.arange(len(spans)), counts)))  # by example, then start
    ragged = (*table[order].T, np.cumsum([0, *counts]))
    found = span_ids_from_offsets(torch.from_numpy(padded), tuple(map(torch.from_numpy, ragged)), backend="auto")
    for index, ids, ranges in zip(missing, found.numpy().astype(np.int8), offsets):
        labels[index] = ids[: len(ranges)]
    return labels


def _rows_of(example: Mapping[str, Any], index: int, key: str, width: int) -> NDArray[np.int64]:
    """Returns `example[key]` as an array (n, width)."""
    if example.get(key) is None:
        remedy = "Encode it with `sad.encode`, or add offsets and spans."
        got = f"no {key} among {', '.join(map(str, example))}"
        raise InputError(f"example {index}", "span_ids, or offsets and spans", got, remedy)
    try:
        rows = np.asarray(example[key], dtype=np.int64).reshape(len(example[key]), width)
    except (TypeError, ValueError):
        shape = "(begin, end) of every token" if key == "offsets" else "(start, end, kind) of every span"
        remedy = "Kinds are numbers: `sad.Span(0, 12, sad.Span.ACT)`."
        raise InputError(f"{key} of example {index}", shape, repr(example[key])[:80], remedy) from None
    return rows
