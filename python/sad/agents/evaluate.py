"""Evaluation of trajectories with the metrics of the paper (appendix C), over all tasks and per task type."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sad.agents import metrics
from sad.agents.episode import count_end_reasons
from sad.errors import InputError
from sad.trajectories.encode import encode_with_segmentation
from sad.trajectories.spans import SpanKind, supervised_kinds
from sad.trajectories.trajectory import Trajectory


class EpisodeMeasures(NamedTuple):
    """What the metrics use of one episode. `reasoning` are the token ids of its reasoning."""

    id: str
    type: str
    end: str | None
    decoding: str | None
    success: bool
    steps: int
    actions: int
    invalid_actions: int | None
    reasoning: list[int]
    env_metrics: dict[str, float]


def evaluate(
    trajectories: Sequence[Trajectory],
    tokenizer: Any,
    *,
    reference: Sequence[Trajectory] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Computes success rate, reasoning length, CoT match and steps (paper appendix C).

    Args:
        trajectories: One trajectory per task, with the id of the task and `success`. `extra` may contain `type`, `end`,
            `decoding`, `invalid_actions` and `metrics`, as `sad.collect` writes them.
        tokenizer: Fast tokenizer. Reasoning is counted and compared in its tokens, with the prefixes.
        reference: Trajectories of the teacher on at least the same tasks, for the CoT match.
        seed: Seed of the bootstrap.

    Returns:
        A dictionary that `json.dumps` accepts. `<name>_interval` is the 95 % interval over tasks:
        Wilson for the success rate, bootstrap for the other metrics.

        * `tasks`, `successes`, `success_rate`, `success_interval`.
        * `reasoning_length`: mean number of reasoning tokens.
        * `cot_match`: mean CoT match; None without `reference`.
        * `steps`: mean number of reasoning and action lines.
        * `actions`: mean number of actions.
        * `invalid_actions`: their number; None if a trajectory does not report it.
        * `invalid_rate`: share of invalid actions in all actions.
        * `metrics`: `mean` and `interval` of each metric of the environment. An episode without the metric counts as 0.
        * `ends`: number of episodes per end reason.
        * `decoding`: the decoding mode of all trajectories.
        * `by_type`: the same values per task type.

    Raises:
        InputError: There are no trajectories, one has no `success`, two have the same id, one has no counterpart in
            `reference`, or their decoding modes differ.
    """
    records = [measure_episode(trajectory, tokenizer) for trajectory in trajectories]
    if len({record.id for record in records}) < len(records):
        raise InputError(
            "trajectories", "one per task", "several with the same id", "Evaluate each sample of a task separately."
        )
    decodings = {record.decoding for record in records}
    if len(decodings) > 1:
        raise InputError(
            "trajectories",
            "one decoding mode",
            " and ".join(sorted(map(str, decodings))),
            "Evaluate free and admissible decoding separately: they are not comparable.",
        )
    teacher = None
    if reference is not None:
        ids = {record.id for record in records}
        check_reference(reference, ids)
        teacher = {t.id: measure_episode(t, tokenizer).reasoning for t in reference if t.id in ids}
    summary = _summary(records, teacher, seed)
    summary["decoding"] = next(iter(decodings), None)
    types = sorted({record.type for record in records})
    summary["by_type"] = {name: _summary([r for r in records if r.type == name], teacher, seed) for name in types}
    return summary


def check_reference(reference: Sequence[Trajectory], task_ids: Collection[str]) -> None:
    """Checks that the reference has a trajectory for every task.

    Raises:
        InputError: A task has no reference trajectory. The message names one such task.
    """
    if missing := sorted(set(task_ids) - {trajectory.id for trajectory in reference}):
        raise InputError(
            "reference",
            "a trajectory for every task",
            f"none for {len(missing)} of them, such as {missing[0]!r}",
            "Run the teacher on the same tasks.",
        )


def measure_episode(trajectory: Trajectory, tokenizer: Any) -> EpisodeMeasures:
    """Returns the measures of one episode.

    Args:
        trajectory: A trajectory with `success`, as in `evaluate`.
        tokenizer: Fast tokenizer that counts the reasoning.

    Raises:
        InputError: The trajectory has no `success`.
    """
    if trajectory.success is None:
        where = f"trajectory {trajectory.id!r}"
        raise InputError(where, "true or false in `success`", "none", "Collect it in an environment: `sad collect`.")
    encoded, segmentation = encode_with_segmentation(trajectory, tokenizer, add_eos=False)
    kinds = [span.kind for span in segmentation.spans]
    extra = trajectory.extra
    return EpisodeMeasures(
        id=trajectory.id,
        type=str(extra.get("type", "all")),
        end=extra.get("end"),
        decoding=extra.get("decoding"),
        success=trajectory.success,
        steps=sum(kind in supervised_kinds() for kind in kinds),
        actions=kinds.count(SpanKind.ACT),
        invalid_actions=extra.get("invalid_actions"),
        reasoning=[t for t, kind in zip(encoded.input_ids, encoded.span_ids) if kind == SpanKind.REASON],
        env_metrics=dict(extra.get("metrics") or {}),
    )


def _summary(records: Sequence[EpisodeMeasures], teacher: dict[str, list[int]] | None, seed: int) -> dict[str, Any]:
    successes = [record.success for record in records]
    actions = [record.actions for record in records]
    invalid = [record.invalid_actions for record in records]
    is_counted = all(count is not None for count in invalid)
    names = dict.fromkeys(name for record in records for name in record.env_metrics)
    return {
        "tasks": len(records),
        "successes": sum(successes),
        "success_rate": metrics.success_rate(successes),
        "success_interval": list(metrics.success_interval(successes)),
        **_mean("reasoning_length", [len(record.reasoning) for record in records], seed),
        **_mean("cot_match", _cot_matches(records, teacher), seed),
        **_mean("steps", [record.steps for record in records], seed),
        **_mean("actions", actions, seed),
        "invalid_actions": sum(invalid) if is_counted else None,
        **_ratio("invalid_rate", invalid if is_counted else [], actions, seed),
        "metrics": {name: _env_metric(name, records, seed) for name in names},
        "ends": count_end_reasons([record.end for record in records]),
    }


def _cot_matches(records: Sequence[EpisodeMeasures], teacher: dict[str, list[int]] | None) -> list[float]:
    if teacher is None:
        return []
    return metrics.cot_match_rates([record.reasoning for record in records], [teacher[record.id] for record in records])


def _mean(name: str, values: Sequence[float], seed: int) -> dict[str, Any]:
    """Returns the mean and its interval, or None for both if there are no values."""
    if not values:
        return {name: None, f"{name}_interval": None}
    return {name: sum(values) / len(values), f"{name}_interval": list(metrics.mean_interval(values, seed=seed))}


def _env_metric(name: str, records: Sequence[EpisodeMeasures], seed: int) -> dict[str, Any]:
    summary = _mean("mean", [float(record.env_metrics.get(name, 0.0)) for record in records], seed)
    return {"mean": summary["mean"], "interval": summary["mean_interval"]}


def _ratio(name: str, numerators: Sequence[int], denominators: Sequence[int], seed: int) -> dict[str, Any]:
    """Returns sum(numerators) / sum(denominators) and its interval, or None for both if the ratio is undefined."""
    if not numerators or not sum(denominators):
        return {name: None, f"{name}_interval": None}
    interval = list(metrics.ratio_interval(numerators, denominators, seed=seed))
    return {name: sum(numerators) / sum(denominators), f"{name}_interval": interval}
