"""One episode as it is played: the transcript, the tokens, and why it ended."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sad.agents.cleaning import ACTION, ANSWER
from sad.envs.protocol import Task
from sad.trajectories.trajectory import Trajectory

_AS_IF_WRITTEN = re.compile(r"\s*(?:Reasoning|Action|Answer)[ \t]?:", re.IGNORECASE)


class End(str, Enum):
    """Why an episode ended. Every episode has exactly one reason."""

    WON = "won"  # the environment's goal holds
    LOST = "lost"  # the environment ended the episode without success
    ANSWERED = "answered"  # an `Answer:` line, which the environment did not accept
    STEPS = "max_steps"  # as many actions as allowed
    CONTEXT = "context"  # the model's context is full
    NO_ACTION = "no_action"  # end of sequence written instead of an action
    ENDLESS = "endless"  # more tokens in one turn than allowed, and no action
    REPEATS = "repeats"  # the same action with the same answer over and over


@dataclass
class Episode:
    """What an agent did on one task.

    Attributes:
        task: The task played.
        text: The transcript: observations and the lines the model wrote, without the prompt.
        token_ids: The tokens as the model read and wrote them, prompt included; empty where an endpoint played.
        written: For each of `token_ids`, whether the model wrote it.
        actions: The commands given to the environment.
        invalid_actions: How many of them did nothing, by `info["valid"]` or the admissible commands.
        metrics: The environment's own figures after the last action.
        end: Why the episode ended.
        decoding: `"free"` or `"admissible"`.
        seed: Of what was sampled.
    """

    task: Task
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    invalid_actions: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    end: End | None = None
    decoding: str = "free"
    seed: int = 0

    @property
    def won(self) -> bool:
        """Whether the final state of the environment meets the goal."""
        return self.end is End.WON

    @property
    def sampling_seed(self) -> int:
        """The seed for this task: what an agent samples depends on nothing else, so not on who plays beside it."""
        return zlib.crc32(f"{self.seed}/{self.task.id}".encode())

    def trajectory(self, env: str | None = None, **extra: Any) -> Trajectory:
        """The episode as a trajectory record of format `sad`, under the task's id.

        Args:
            env: Name of the environment.
            **extra: Further fields to keep in the record, such as the model's name.
        """
        facts = {
            "type": self.task.type,
            "steps": len(self.actions),
            "invalid_actions": self.invalid_actions,
            "end": self.end.value if self.end else None,
            "decoding": self.decoding,
        }
        if self.metrics:
            facts["metrics"] = self.metrics
        return Trajectory(
            id=self.task.id,
            text=self.text,
            format="sad",
            env=env,
            task=self.task.goal,
            success=self.won,
            extra=facts | extra,
        )


def observation_lines(observation: str) -> str:
    """An observation as a transcript holds it: its lines without blank ones, each ended.

    A line that looks like one of the agent's gets `Observation: ` before it, lest it be taken for one.
    """
    lines = (line.rstrip() for line in observation.splitlines() if line.strip())
    return "".join(f"Observation: {line}\n" if _AS_IF_WRITTEN.match(line) else f"{line}\n" for line in lines)


def closing_command(line: str) -> str | None:
    """What a line that the agent wrote hands to the environment.

    Args:
        line: The line, without its end.

    Returns:
        The command; None for any other line. An answer keeps its prefix, so that an environment with
        answers can tell it from an action.
    """
    if line.startswith(ACTION):
        return line[len(ACTION) :].strip()
    return line.strip() if line.startswith(ANSWER) else None


def count_ends(ends: Sequence[str | None]) -> dict[str, int]:
    """How many episodes ended for which reason, in the order of `End`; reasons without episodes are left out."""
    return {end.value: count for end in End if (count := sum(e == end.value for e in ends))}
