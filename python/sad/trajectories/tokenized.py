"""Tokenizes a segmented text once, and labels its tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sad.trajectories.segment import Segmentation
from sad.trajectories.spans import SpanKind, WeightedRange, span_ids_from_offsets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def _eos_kind(segmentation: Segmentation) -> SpanKind:
    """Returns the kind of an EOS after the text: the kind of the last span if it ends the text without a line terminator."""
    text, spans = segmentation.text, segmentation.spans
    if spans and spans[-1].end == len(text) and not text.endswith(("\n", "\r")):
        return spans[-1].kind
    return SpanKind.NONE


def weights_of_tokens(
    offsets: Sequence[tuple[int, int]], labels: Sequence[int], weights: Sequence[WeightedRange]
) -> list[float] | None:
    """Returns the weight of every token: that of the range in which it ends, and 1 outside and without a label.

    Args:
        offsets: (T,) character ranges of the tokens.
        labels: (T,) labels of the tokens.
        weights: Ranges in the order of the text.

    Returns:
        (T,) weights; None without a range.
    """
    if not weights:
        return None
    starts = [item.start for item in weights]
    found = []
    for (begin, end), label in zip(offsets, labels):
        number = bisect_left(starts, end) - 1  # the last range that starts before the end of the token
        inside = label and number >= 0 and begin < weights[number].end
        found.append(weights[number].weight if inside else 1.0)
    return found


def tokenize_text(
    segmentation: Segmentation,
    tokenizer: PreTrainedTokenizerBase,
    rendered: bool,
    add_eos: bool,
    observe: bool,
    from_text: bool = False,
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Returns token ids, labels and offsets of the whole text.

    Args:
        segmentation: The text and its spans.
        tokenizer: A fast tokenizer.
        rendered: Whether a chat template rendered the text. Then the text contains all special tokens already.
        add_eos: Whether to append the EOS.
        observe: Whether to label observations.
        from_text: Whether another program rendered the text. It may lack the BOS.
    """
    text, bos = segmentation.text, tokenizer.bos_token
    add = (from_text or not rendered) and not (bos and text.startswith(bos))
    batch = tokenizer(text, return_offsets_mapping=True, add_special_tokens=add, truncation=False, verbose=False)
    ids, offsets = list(batch["input_ids"]), [tuple(offset) for offset in batch["offset_mapping"]]
    labels = span_ids_from_offsets(offsets, segmentation.spans).tolist()
    if observe and segmentation.observations:  # a token that touches a span of the model keeps its label
        observed = span_ids_from_offsets(offsets, segmentation.observations).tolist()
        labels = [own or other for own, other in zip(labels, observed)]
    eos = tokenizer.eos_token_id
    if not rendered and eos is not None:
        appended = bool(ids) and ids[-1] == eos and offsets[-1][0] == offsets[-1][1]  # by the tokenizer itself
        if ids and ids[-1] == eos and not appended:  # the text itself ends with the EOS
            return ids, labels, offsets
        if add_eos and not appended:
            end = len(segmentation.text)
            ids, labels, offsets = [*ids, eos], [*labels, 0], [*offsets, (end, end)]
        if add_eos or appended:
            labels[-1] = int(_eos_kind(segmentation))
    return ids, labels, offsets
