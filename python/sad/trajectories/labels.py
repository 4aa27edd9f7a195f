"""The labels of training examples, which carry them or the spans they follow from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sad.errors import InputError
from sad.trajectories.spans import span_ids_from_offsets


def span_ids_of(examples: Sequence[Mapping[str, Any]], max_length: int | None = None) -> list[NDArray[np.int8]]:
    """The label of every token of every example; those given by offsets and spans in one call of the op.

    Args:
        examples: Mappings with `span_ids` (T,), or with `offsets` (T, 2), the tokens' character ranges, and `spans` (S, 3),
            rows of (start, end, kind), in any order. Where an example has both, its `span_ids` count.
        max_length: Leave out tokens beyond this many.

    Raises:
        InputError: An example has neither, or they have the wrong shape.
        ValueError: Spans overlap or are not ranges.
    """
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
    order = np.lexsort((table[:, 1], table[:, 0], np.repeat(np.arange(len(spans)), counts)))  # the last key sorts first
    ragged = (*table[order].T, np.cumsum([0, *counts]))
    found = span_ids_from_offsets(torch.from_numpy(padded), tuple(map(torch.from_numpy, ragged)), backend="auto")
    for index, ids, ranges in zip(missing, found.numpy().astype(np.int8), offsets):
        labels[index] = ids[: len(ranges)]
    return labels


def _rows_of(example: Mapping[str, Any], index: int, key: str, width: int) -> NDArray[np.int64]:
    """`example[key]` as (n, width)."""
    if example.get(key) is None:
        remedy = "Encode it with `sad.encode`, or add the tokens' offsets and the text's spans."
        got = f"no {key} among {', '.join(map(str, example))}"
        raise InputError(f"example {index}", "span_ids, or offsets and spans", got, remedy)
    try:
        rows = np.asarray(example[key], dtype=np.int64).reshape(len(example[key]), width)
    except (TypeError, ValueError):
        shape = "(begin, end) of every token" if key == "offsets" else "(start, end, kind) of every span"
        remedy = "Kinds are numbers: `sad.Span(0, 12, sad.Span.ACT)`."
        raise InputError(f"{key} of example {index}", shape, repr(example[key])[:80], remedy) from None
    return rows
