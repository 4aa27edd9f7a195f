"""From played trajectories to the figures of appendix C, over all tasks and per task type."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
    invalid: int | None
    reasoning: list[int]
    metrics: dict[str, float]


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
            hold the task's `type`, the `end` of the episode, the `decoding`, the number of `invalid_actions` and the
            world's own `metrics`, as `play` gives them.
        tokenizer: Fast tokenizer; reasoning is counted and compared in its tokens, prefixes included.
        reference: The teacher's trajectories on (at least) the same tasks, for the CoT match.
        seed: Seed of the bootstrap.

    Returns:
        A dictionary ready for JSON: `tasks`, `successes`, `success_rate`, `success_interval`,
        `reasoning_length` (tokens), `cot_match` (None without reference), `steps` (reasoning and action
        steps), `actions`, `invalid_actions` (None where not counted), `invalid_rate` (of all actions),
        `metrics` (`mean` and `interval` of the world's own figures, an episode without counting 0), `ends` (count per
        reason), `decoding`, and `by_type` with the same per type. `<name>_interval` beside a figure is its 95 % bootstrap
        interval over tasks.

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
        check_reference(reference, wanted)
        teacher = {t.id: _reduce(t, tokenizer).reasoning for t in reference if t.id in wanted}
    summary = _summary(played, teacher, seed)
    summary["decoding"] = next(iter(decodings), None)
    types = sorted({one.type for one in played})
    summary["by_type"] = {name: _summary([p for p in played if p.type == name], teacher, seed) for name in types}
    return summary


def check_reference(reference: Sequence[Trajectory], tasks: Collection[str]) -> None:
    """Refuses a teacher's trajectories that leave out some of the tasks, given by their ids.

    Raises:
        InputError: Names one of them.
    """
    if missing := sorted(set(tasks) - {trajectory.id for trajectory in reference}):
        raise InputError(
            "reference",
            "a trajectory for every task played",
            f"none for {len(missing)} of them, such as {missing[0]!r}",
            "Let the teacher play the same tasks.",
        )


def _reduce(trajectory: Trajectory, tokenizer: Any) -> _Played:
    if trajectory.success is None:
        where = f"trajectory {trajectory.id!r}"
        raise InputError(where, "a verdict in `success`", "none", "Let the environment judge it: `sad collect`.")
    tokens, segmentation = encode_with_segmentation(trajectory, tokenizer, add_eos=False)
    kinds = [span.kind for span in segmentation.spans]
    extra = trajectory.extra
    return _Played(
        id=trajectory.id,
        type=str(extra.get("type", "all")),
        end=extra.get("end"),
        decoding=extra.get("decoding"),
        success=trajectory.success,
        steps=sum(kind is not SpanKind.NONE for kind in kinds),
        actions=kinds.count(SpanKind.ACT),
        invalid=extra.get("invalid_actions"),
        reasoning=[t for t, kind in zip(tokens.input_ids, tokens.span_ids) if kind == SpanKind.REASON],
        metrics=dict(extra.get("metrics") or {}),
    )


def _summary(played: Sequence[_Played], teacher: dict[str, list[int]] | None, seed: int) -> dict[str, Any]:
    successes = [one.success for one in played]
    actions = [one.actions for one in played]
    invalid = [one.invalid for one in played]
    counted = all(number is not None for number in invalid)
    names = dict.fromkeys(name for one in played for name in one.metrics)
    return {
        "tasks": len(played),
        "successes": sum(successes),
        "success_rate": metrics.success_rate(successes),
        "success_interval": list(metrics.success_interval(successes, seed=seed)),
        **_mean("reasoning_length", [len(one.reasoning) for one in played], seed),
        **_mean("cot_match", _matches(played, teacher), seed),
        **_mean("steps", [one.steps for one in played], seed),
        **_mean("actions", actions, seed),
        "invalid_actions": sum(invalid) if counted else None,
        **_share("invalid_rate", invalid if counted else [], actions, seed),
        "metrics": {name: _own(name, played, seed) for name in names},
        "ends": count_ends([one.end for one in played]),
    }


def _matches(played: Sequence[_Played], teacher: dict[str, list[int]] | None) -> list[float]:
    if teacher is None:
        return []
    return metrics.cot_match_rates([one.reasoning for one in played], [teacher[one.id] for one in played])


def _mean(name: str, values: Sequence[float], seed: int) -> dict[str, Any]:
    """A mean and its interval; None where there is nothing to average."""
    if not values:
        return {name: None, f"{name}_interval": None}
    return {name: sum(values) / len(values), f"{name}_interval": list(metrics.mean_interval(values, seed=seed))}


def _own(name: str, played: Sequence[_Played], seed: int) -> dict[str, Any]:
    figures = _mean("mean", [float(one.metrics.get(name, 0.0)) for one in played], seed)
    return {"mean": figures["mean"], "interval": figures["mean_interval"]}


def _share(name: str, part: Sequence[int], whole: Sequence[int], seed: int) -> dict[str, Any]:
    """Sum over sum and its interval; None where there is nothing to divide by."""
    if not part or not sum(whole):
        return {name: None, f"{name}_interval": None}
    return {name: sum(part) / sum(whole), f"{name}_interval": list(metrics.ratio_interval(part, whole, seed=seed))}
