"""What the log shows of the rollouts."""

from __future__ import annotations

from collections.abc import Sequence

from sad.on_policy.examples import written_tokens
from sad.trajectories.trajectory import Trajectory


class RolloutMeter:
    """Sums the results of rollouts between two logs."""

    def __init__(self) -> None:
        self._trajectories: list[Trajectory] = []
        self._seconds = 0.0

    def add(self, trajectories: Sequence[Trajectory], seconds: float) -> None:
        """Adds a rollout of all processes and the seconds of the slowest of them."""
        self._trajectories += trajectories
        self._seconds += seconds

    def take(self) -> dict[str, float]:
        """Returns the metrics by their names in the log, none without a rollout, and starts anew."""
        found, seconds = self._trajectories, self._seconds
        self._trajectories, self._seconds = [], 0.0
        if not found:
            return {}
        tokens = sum(written_tokens(trajectory.kept_tokens) for trajectory in found)
        metrics: dict[str, float] = {"rollout_episodes": len(found), "rollout_tokens": tokens}
        metrics["rollout_tokens_per_second"] = tokens / seconds
        if acted := [trajectory.extra["acted"] for trajectory in found if "acted" in trajectory.extra]:
            metrics["rollout_acted"] = sum(acted) / len(acted)
        judged = [bool(trajectory.success) for trajectory in found if trajectory.success is not None]
        if not judged:
            return metrics
        replayed = sum(trajectory.extra.get("replayed", 0) for trajectory in found)
        actions = sum(trajectory.extra["steps"] for trajectory in found) - replayed
        invalid = sum(trajectory.extra["invalid_actions"] for trajectory in found)
        metrics["rollout_success"] = sum(judged) / len(judged)
        metrics["rollout_actions"] = actions / len(found)
        metrics["rollout_invalid_actions"] = invalid / actions if actions else 0.0
        metrics["rollout_replayed_actions"] = replayed / len(found)
        return metrics
