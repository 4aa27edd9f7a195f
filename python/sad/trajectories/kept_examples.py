"""Makes training examples of the token ids that a trajectory keeps from its play."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sad.trajectories.encoded import Encoded, EncodedTrajectory, Encoding
from sad.trajectories.formats import Format, get_format
from sad.trajectories.kept import KeptTokens, cut_prompt, decoded_text, kept_segmentation, unusable
from sad.trajectories.long import cut_to_length
from sad.trajectories.segment import Segmentation
from sad.trajectories.spans import Span, SpanKind, span_ids_from_offsets
from sad.trajectories.trajectory import Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def usable_tokens(
    trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase, encoding: Encoding
) -> tuple[KeptTokens | None, str]:
    """Returns the ids of the play to train on; or None and why they are not used ("" if there are none, or on request)."""
    kept = trajectory.kept_tokens
    if kept is None or encoding.kept_ids == "never":
        return None, ""
    if encoding.format is not None or trajectory.spans is not None:
        return None, "a format or spans replace their kinds"
    why = unusable(kept, trajectory.text, decoded_text(kept, tokenizer), encoding.kept_ids)
    if why is not None:
        return None, why
    return kept if encoding.kept_ids == "always" else cut_prompt(kept), ""


def encode_kept(kept: KeptTokens, tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> EncodedTrajectory:
    """Returns the examples of the ids of a play. No token is added."""
    segmentation, offsets = kept_segmentation(kept, tokenizer)
    labels = [int(digit) for digit in kept.kinds]
    if not (encoding.observe or encoding.show_observations):
        labels = [0 if label == SpanKind.OBSERVE else label for label in labels]
    if not encoding.include_prefix:
        segmentation = segmentation._replace(spans=_without_prefixes(segmentation))
        inside = span_ids_from_offsets(offsets, segmentation.spans).tolist()
        labels = [label if own or label == SpanKind.OBSERVE else 0 for label, own in zip(labels, inside)]
    whole = Encoded(list(kept.ids), labels, 0, offsets)
    examples = cut_to_length(whole, segmentation, encoding, encoding.include_prefix)
    return EncodedTrajectory([whole], examples, segmentation, kept=True)


def _without_prefixes(segmentation: Segmentation) -> list[Span]:
    """Returns the spans of a play from after their prefixes and the blanks that follow."""
    fmt = get_format("sad")
    assert isinstance(fmt, Format)
    text, cut = segmentation.text, []
    for start, end, kind in segmentation.spans:
        prefix = fmt.patterns["reason" if kind is SpanKind.REASON else "act"].match(text, start, end)
        begin = prefix.end() if prefix else start
        begin += len(text[begin:end]) - len(text[begin:end].lstrip(" \t"))
        if begin < end:
            cut.append(Span(begin, end, kind))
    return cut
