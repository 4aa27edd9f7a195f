"""Makes training examples from what the student played, without a run of the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sad.agents.episode import EndReason, Episode
from sad.trajectories.kept import KeptTokens, digest, token_offsets
from sad.trajectories.spans import SpanKind

_WRITTEN = (SpanKind.REASON, SpanKind.ACT)


def judge_all(kinds: Sequence[int]) -> list[int]:
    """Returns the kinds of tokens that the student wrote, with a kind for each of them.

    A token outside of any span, such as a line without a prefix, becomes reasoning. It would have no loss otherwise, and
    the student would not learn to avoid it.
    """
    return [int(kind) if kind in _WRITTEN else int(SpanKind.REASON) for kind in kinds]


def played_tokens(episode: Episode, tokenizer: Any) -> KeptTokens:
    """Returns the tokens of an episode for its training: `kept_tokens`, in which all that the student wrote has a kind.

    If the student stopped without an action, the stop token is added. It is what the teacher has to judge there.

    Args:
        episode: A finished episode of a model with token ids.
        tokenizer: The model's tokenizer.
    """
    kept = episode.kept_tokens
    kinds = [int(digit) for digit in kept.kinds]
    judged = judge_all(kinds)
    kinds = [new if own else old for new, old, own in zip(judged, kinds, episode.generated_mask)]
    ids, decoded = list(kept.ids), kept.decoded_digest
    if episode.end is EndReason.NO_ACTION and tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
        kinds.append(kinds[-1] if episode.generated_mask[-1] else int(SpanKind.REASON))
        decoded = digest(token_offsets(tokenizer, ids)[0])
    return replace(kept, ids=ids, kinds="".join(map(str, kinds)), decoded_digest=decoded)


def example_of(kept: KeptTokens) -> dict[str, list[int]] | None:
    """Returns a training example with exactly these tokens and kinds; None if the student wrote none of them."""
    span_ids = [int(digit) for digit in kept.kinds]
    if not any(kind in _WRITTEN for kind in span_ids[1:]):  # nothing predicts the first token
        return None
    return {"input_ids": list(kept.ids), "span_ids": span_ids}


def written_tokens(kept: KeptTokens) -> int:
    """Returns how many tokens the student wrote."""
    return sum(kept.kinds.count(str(int(kind))) for kind in _WRITTEN)
