"""An episode: the record of what an agent did on one task, and the loop that steps the environment."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sad.agents.cleaning import ACTION, ANSWER, clean
from sad.envs.protocol import Env, Step, Task
from sad.errors import InputError
from sad.trajectories.kept import KeptTokens
from sad.trajectories.trajectory import Trajectory

_AGENT_PREFIX = re.compile(r"\s*(?:Reasoning|Action|Answer)[ \t]?:", re.IGNORECASE)


class EndReason(str, Enum):
    """The reason why an episode ended. Every finished episode has exactly one."""

    WON = "won"  # the goal holds in the environment
    LOST = "lost"  # the environment ended the episode without success
    ANSWERED = "answered"  # the agent wrote an `Answer:` line that the environment did not accept
    MAX_STEPS = "max_steps"  # the agent used all allowed actions
    CONTEXT = "context"  # the context of the model is full
    NO_ACTION = "no_action"  # the model ended its turn without an action
    ENDLESS = "endless"  # the turn reached its token limit without an action
    REPEATS = "repeats"  # the same action got the same observation too often in a row


@dataclass(frozen=True)
class RolloutConfig:
    """Limits and sampling options of an episode. The arguments of `sad.rollout` have the same names and meanings."""

    max_steps: int = 50
    max_turn_tokens: int = 128
    max_repeats: int = 5
    decoding: str = "free"
    temperature: float = 0.0
    prompt: str = ""
    clean: bool = True

    def __post_init__(self) -> None:
        """Validates the fields.

        Raises:
            InputError: A number is out of range, or `decoding` is unknown.
        """
        if self.decoding not in ("free", "admissible"):
            raise InputError("decoding", "'free' or 'admissible'", repr(self.decoding), "Use one of these.")
        for name in ("max_steps", "max_turn_tokens", "max_repeats"):
            if getattr(self, name) < 1:
                raise InputError(name, "at least 1", str(getattr(self, name)), "Use a larger number.")
        if not 0 <= self.temperature < float("inf"):
            raise InputError("temperature", "0 (greedy) or a positive number", str(self.temperature), "Use 0 to 1.")


@dataclass
class Episode:
    """The record of what an agent did on one task.

    Attributes:
        task: The task.
        text: The transcript without the prompt: the observations and the lines of the agent.
        token_ids: The tokens that the model read and generated, with the prompt. Empty for a model behind an endpoint.
        generated_mask: For each of `token_ids`, whether the model generated it.
        kept_tokens: `token_ids` with their kinds, for a training. None while the episode runs, or without `token_ids`.
        actions: The commands that the environment received.
        invalid_actions: Number of actions without effect, according to `info["valid"]` or the admissible commands.
        metrics: The metrics that the environment reported after the last action.
        end: The reason why the episode ended. None while it runs.
        decoding: `"free"` or `"admissible"`.
        seed: Seed of the sampling.
        replayed: Number of actions that were replayed before the model acted. `invalid_actions` does not count them.
    """

    task: Task
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    generated_mask: list[bool] = field(default_factory=list)
    kept_tokens: KeptTokens | None = None
    actions: list[str] = field(default_factory=list)
    invalid_actions: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    end: EndReason | None = None
    decoding: str = "free"
    seed: int = 0
    replayed: int = 0

    @property
    def won(self) -> bool:
        """Whether the final state of the environment meets the goal."""
        return self.end is EndReason.WON

    @property
    def sampling_seed(self) -> int:
        """Seed of the random generator. It depends on `seed` and the task only, so the batch does not change the samples."""
        return zlib.crc32(f"{self.seed}/{self.task.id}".encode())

    def to_trajectory(self, env_name: str | None = None, *, keep_ids: bool = True, **extra: Any) -> Trajectory:
        """Returns the episode as a trajectory of format `sad`, under the id of the task.

        Args:
            env_name: Name of the environment.
            keep_ids: Whether the trajectory keeps the token ids, so that a training on it needs no tokenizer run.
            **extra: Additional fields of the record, such as the name of the model.
        """
        record = {
            "type": self.task.type,
            "steps": len(self.actions),
            "invalid_actions": self.invalid_actions,
            "end": self.end.value if self.end else None,
            "decoding": self.decoding,
        }
        if self.replayed:
            record["replayed"] = self.replayed
        if self.metrics:
            record["metrics"] = self.metrics
        return Trajectory(
            id=self.task.id,
            text=self.text,
            format="sad",
            env=env_name,
            task=self.task.goal,
            success=self.won,
            kept_tokens=self.kept_tokens if keep_ids else None,
            extra=record | extra,
        )


class EpisodeRunner:
    """Steps one environment with the commands of an agent and records the episode.

    The agent reads `opening` and writes its turn. `step` runs the command of the turn and returns the observation, and
    so on until `done`.

    Args:
        env: The environment. No other runner may use the same object.
        task: The task.
        config: Limits and sampling options.
        seed: Seed of the sampling.

    Attributes:
        episode: The record so far.
        prompt: The prompt and a blank line, or "".
        opening: The prompt and the first observation.
        admissible: The commands that the environment lists for its current state.
    """

    def __init__(self, env: Env, task: Task, config: RolloutConfig, seed: int = 0) -> None:
        self._env, self._config = env, config
        self.episode = Episode(task, decoding=config.decoding, seed=seed)
        self.episode.text = format_observation(env.reset(task))
        prompt = config.prompt.rstrip()
        self.prompt = f"{prompt}\n\n" if prompt else ""
        self.opening = self.prompt + self.episode.text
        self.admissible: Sequence[str] = env.admissible_commands
        self._last_exchange: tuple[str, str] | None = None  # last command and its observation
        self._repeats = 0

    @property
    def done(self) -> bool:
        """Whether the episode has ended."""
        return self.episode.end is not None

    def step(self, turn: str) -> str | None:
        """Runs the command of a turn, if its complete lines contain one. Text after the command line is dropped.

        Args:
            turn: All text that the agent wrote since the last observation.

        Returns:
            The observation, in the lines of the transcript. None if no line is a command yet.
        """
        lines: list[str] = []
        for line in self._lines(turn[: turn.rfind("\n") + 1]):
            lines.append(line)
            command = parse_command(line)
            if command is not None:
                self.episode.text += "".join(f"{one}\n" for one in lines)
                return self._step_env(command, is_answer=line.startswith(ANSWER))
        return None

    def end(self, reason: EndReason, turn: str = "") -> None:
        """Ends the episode. The first reason counts: a second call changes nothing.

        Args:
            reason: The reason.
            turn: Text that the agent wrote since the last observation, if it contains no command.
        """
        if not self.done:
            self.episode.end = reason
            self.episode.text += "".join(f"{line}\n" for line in self._lines(turn))

    def expects_command(self, turn: str) -> bool:
        """Returns whether the turn ends with an `Action:` prefix, so that a command must follow."""
        line = turn.rpartition("\n")[2]
        probe = self._lines(f"{line.rstrip()} x\n")[-1:]  # cleaning removes a prefix without content
        return line.rstrip().endswith((":", "*", "_", "`")) and probe == [f"{ACTION} x"]

    def _lines(self, turn: str) -> list[str]:
        text = clean(turn, self.admissible) if self._config.clean else turn
        lines = text.split("\n")
        return lines if lines[-1] else lines[:-1]

    def _step_env(self, command: str, *, is_answer: bool) -> str:
        episode = self.episode
        step = self._env.step(command)
        observation = format_observation(step.observation)
        episode.actions.append(command)
        episode.text += observation
        episode.metrics = dict(step.info.get("metrics", {}))
        if not step.info.get("valid", is_answer or command in self.admissible):
            episode.invalid_actions += 1
        self.admissible = step.info["admissible_commands"]
        self._repeats = self._repeats + 1 if self._last_exchange == (command, observation) else 1
        self._last_exchange = command, observation
        episode.end = self._end_reason(step, is_answer)
        return observation

    def _end_reason(self, step: Step, is_answer: bool) -> EndReason | None:
        if step.info["won"]:
            return EndReason.WON
        if step.done or is_answer:
            return EndReason.ANSWERED if is_answer else EndReason.LOST
        if len(self.episode.actions) >= self._config.max_steps:
            return EndReason.MAX_STEPS
        return EndReason.REPEATS if self._repeats >= self._config.max_repeats else None


def format_observation(observation: str) -> str:
    r"""Returns an observation as it appears in a transcript: without blank lines, each line with a `\n` at its end.

    A line with the prefix of an agent (`Action: ...`) gets `Observation: ` in front, so that it gets no span label.
    """
    lines = (line.rstrip() for line in observation.splitlines() if line.strip())
    return "".join(f"Observation: {line}\n" if _AGENT_PREFIX.match(line) else f"{line}\n" for line in lines)


def parse_command(line: str) -> str | None:
    """Returns the command in a line of the agent, or None if the line is not an action or an answer.

    An answer keeps its prefix, so that the environment can distinguish it from an action.

    Args:
        line: The line, without its line end.
    """
    if line.startswith(ACTION):
        return line[len(ACTION) :].strip()
    return line.strip() if line.startswith(ANSWER) else None


def count_end_reasons(ends: Sequence[str | None]) -> dict[str, int]:
    """Counts the episodes per end reason, in the order of `EndReason`. Reasons without episodes are omitted."""
    return {reason.value: count for reason in EndReason if (count := sum(end == reason.value for end in ends))}
