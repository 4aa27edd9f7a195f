"""From played trajectories to the figures of appendix C, over all tasks and per task type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from sad.agents import metrics
from sad.agents.episode import count_ends
from sad.errors import InputError
from sad.trajectories.encode import encode_with_segmentation
from sad.trajectories.spans import SpanKind
from sad.trajectories.trajectory import Trajectory


class _Played(NamedTuple):
    """What the metrics need of one trajectory."""

    id: str
    type: str
    end: str | None
    decoding: str | None
    success: bool
    steps: int
    actions: int
    reasoning: list[int]


def evaluate(
    trajectories: Sequence[Trajectory],
    tokenizer: Any,
    *,
    reference: Sequence[Trajectory] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Computes success rate, reasoning length, CoT match and steps (paper appendix C).

    Args:
        trajectories: One played trajectory per task, under the task's id and with `success`; `extra` may
            hold the task's `type`, the `end` of the episode and the `decoding`, as `play` gives them.
        tokenizer: Fast tokenizer; reasoning is counted and compared in its tokens, prefixes included.
        reference: The teacher's trajectories on (at least) the same tasks, for the CoT match.
        seed: Seed of the bootstrap.

    Returns:
        A dictionary ready for JSON: `tasks`, `successes`, `success_rate`, `success_interval` (95 %),
        `reasoning_length` (tokens), `cot_match` (None without reference), `steps` (reasoning and action
        steps), `actions`, `ends` (count per reason), `decoding`, and `by_type` with the same per type.

    Raises:
        InputError: If there are no trajectories, one has no verdict, a task was played twice or is missing
            in `reference`, or different decodings are mixed.
    """
    played = [_reduce(trajectory, tokenizer) for trajectory in trajectories]
    if len({one.id for one in played}) < len(played):
        raise InputError(
            "trajectories", "one per task", "several with the same id", "Evaluate the samples of a task one by one."
        )
    decodings = {one.decoding for one in played}
    if len(decodings) > 1:
        raise InputError(
            "trajectories",
            "one way of decoding",
            " and ".join(sorted(map(str, decodings))),
            "Evaluate free and admissible decoding apart: they are not comparable.",
        )
    teacher = None
    if reference is not None:
        wanted = {one.id for one in played}
        teacher = {t.id: _reduce(t, tokenizer).reasoning for t in reference if t.id in wanted}
        if missing := sorted(wanted - set(teacher)):
            raise InputError(
                "reference",
                "a trajectory for every task played",
                f"none for {len(missing)} of them, such as {missing[0]!r}",
                "Let the teacher play the same tasks.",
            )
    summary = _summary(played, teacher, seed)
    summary["decoding"] = next(iter(decodings), None)
    types = sorted({one.type for one in played})
    summary["by_type"] = {name: _summary([p for p in played if p.type == name], teacher, seed) for name in types}
    return summary


def _reduce(trajectory: Trajectory, tokenizer: Any) -> _Played:
    if trajectory.success is None:
        where = f"trajectory {trajectory.id!r}"
        raise InputError(where, "a verdict in `success`", "none", "Let the environment judge it: `sad collect`.")
    tokens, segmentation = encode_with_segmentation(trajectory, tokenizer, add_eos=False)
    kinds = [span.kind for span in segmentation.spans]
    return _Played(
        id=trajectory.id,
        type=str(trajectory.extra.get("type", "all")),
        end=trajectory.extra.get("end"),
        decoding=trajectory.extra.get("decoding"),
        success=trajectory.success,
        steps=sum(kind is not SpanKind.NONE for kind in kinds),
        actions=kinds.count(SpanKind.ACT),
        reasoning=[t for t, kind in zip(tokens.input_ids, tokens.span_ids) if kind == SpanKind.REASON],
    )


def _summary(played: Sequence[_Played], teacher: dict[str, list[int]] | None, seed: int) -> dict[str, Any]:
    successes = [one.success for one in played]
    reasoning = [one.reasoning for one in played]
    match = None
    if teacher is not None:
        match = metrics.cot_match_rate(reasoning, [teacher[one.id] for one in played])
    return {
        "tasks": len(played),
        "successes": sum(successes),
        "success_rate": metrics.success_rate(successes),
        "success_interval": list(metrics.success_interval(successes, seed=seed)),
        "reasoning_length": metrics.average_reasoning_length(reasoning),
        "cot_match": None if match is None or math.isnan(match) else match,
        "steps": metrics.average_steps([one.steps for one in played]),
        "actions": metrics.average_steps([one.actions for one in played]),
        "ends": count_ends([one.end for one in played]),
    }
