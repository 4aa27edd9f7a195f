"""Changes which tokens of the examples have a loss, for the methods that do not use SAD's spans."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import groupby

from sad.trajectories.spans import SpanKind

Example = dict[str, list[int]]


def relabel(examples: Sequence[Example], labels: str, seed: int) -> list[Example]:
    """Returns examples with the labels of a method.

    The prompt is everything before the first token of reasoning or action. It never has a loss.

    Args:
        examples: Examples with the labels of SAD and of observations.
        labels: "spans", "all" or "random", as in `sad.study.methods.Method`.
        seed: Seed of the random places.
    """
    if labels == "spans":
        return list(examples)
    if labels == "all":
        return [{**example, "span_ids": _all(example["span_ids"])} for example in examples]
    rng = random.Random(seed)
    return [{**example, "span_ids": _random(example["span_ids"], rng)} for example in examples]


def _own(kind: int) -> int:
    return kind if kind in (SpanKind.REASON, SpanKind.ACT) else int(SpanKind.NONE)


def _prompt_length(span_ids: Sequence[int]) -> int:
    return next((place for place, kind in enumerate(span_ids) if _own(kind)), len(span_ids))


def _all(span_ids: Sequence[int]) -> list[int]:
    start = _prompt_length(span_ids)
    return [0] * start + [_own(kind) or int(SpanKind.OBSERVE) for kind in span_ids[start:]]


def _random(span_ids: Sequence[int], rng: random.Random) -> list[int]:
    """Places the spans after the prompt in random order, with gaps of random lengths that keep the number of free tokens."""
    start = _prompt_length(span_ids)
    runs = [(kind, len(list(run))) for kind, run in groupby(map(_own, span_ids[start:]))]
    spans = [run for run in runs if run[0]]
    rng.shuffle(spans)
    free = sum(length for kind, length in runs if not kind)
    cuts = sorted(rng.randint(0, free) for _ in spans)
    gaps = [after - before for before, after in zip([0, *cuts], [*cuts, free])]
    placed = [0] * (start + gaps[0])
    for (kind, length), gap in zip(spans, gaps[1:]):
        placed += [kind] * length + [0] * gap
    return placed
