"""One agent against one task: plays its commands in the world, keeps the transcript, and says when it is over and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sad.agents.cleaning import ACTION, ANSWER, clean
from sad.agents.episode import End, Episode, closing_command, observation_lines
from sad.envs.protocol import Env, Step, Task
from sad.errors import InputError


@dataclass(frozen=True)
class Rules:
    """How agents play; each field means what it means as an argument of `play`."""

    max_steps: int = 50
    max_turn_tokens: int = 128
    max_repeats: int = 5
    decoding: str = "free"
    temperature: float = 0.0
    prompt: str = ""
    clean: bool = True

    def check(self) -> None:
        """Refuses numbers out of range and unknown names.

        Raises:
            InputError: Names the field.
        """
        if self.decoding not in ("free", "admissible"):
            raise InputError("decoding", "'free' or 'admissible'", repr(self.decoding), "Choose one.")
        for name in ("max_steps", "max_turn_tokens", "max_repeats"):
            if getattr(self, name) < 1:
                raise InputError(name, "at least 1", str(getattr(self, name)), "Raise it.")
        if not 0 <= self.temperature < float("inf"):
            raise InputError("temperature", "0 (greedy) or a positive number", str(self.temperature), "Use 0 to 1.")


class Match:
    """An episode in progress.

    The agent reads `opening`, writes until `turn` finds a line that closes its turn, reads the answer, and so on.

    Args:
        env: The world, for this match alone.
        task: What is played.
        rules: The rules.
        seed: Of what the agent samples.

    Attributes:
        episode: What has happened so far.
        opening: The prompt, if any, a blank line, and the first observation.
        admissible: The commands that would do something now, as far as the world lists them.
    """

    def __init__(self, env: Env, task: Task, rules: Rules, seed: int = 0) -> None:
        self._env, self._rules = env, rules
        self.episode = Episode(task, decoding=rules.decoding, seed=seed)
        self.episode.text = observation_lines(env.reset(task))
        self.opening = f"{rules.prompt.rstrip()}\n\n{self.episode.text}" if rules.prompt.strip() else self.episode.text
        self.admissible: Sequence[str] = env.admissible_commands
        self._last: tuple[str, str] | None = None  # last command and the world's answer
        self._repeats = 0

    @property
    def over(self) -> bool:
        """Whether the episode has ended."""
        return self.episode.end is not None

    def turn(self, written: str) -> str | None:
        """Plays the command of a turn, if its complete lines hold one. What follows that line was not asked for.

        Args:
            written: All that the agent wrote since the last observation.

        Returns:
            The world's answer, in lines as the transcript holds them; None while no line closes the turn.
        """
        lines: list[str] = []
        for line in self._lines(written[: written.rfind("\n") + 1]):
            lines.append(line)
            command = closing_command(line)
            if command is not None:
                self.episode.text += "".join(f"{one}\n" for one in lines)
                return self._play(command, final=line.startswith(ANSWER))
        return None

    def end(self, end: End, written: str = "") -> None:
        """Ends the episode, unless it has ended before; the first reason counts.

        Args:
            end: Why.
            written: What the agent wrote in the turn that came to nothing.
        """
        if not self.over:
            self.episode.end = end
            self.episode.text += "".join(f"{line}\n" for line in self._lines(written))

    def opens_command(self, written: str) -> bool:
        """Whether the next thing written in this turn is a command."""
        line = written.rpartition("\n")[2]
        probe = self._lines(f"{line.rstrip()} x\n")[-1:]  # a prefix alone is nothing yet
        return line.rstrip().endswith((":", "*", "_", "`")) and probe == [f"{ACTION} x"]

    def _lines(self, written: str) -> list[str]:
        text = clean(written, self.admissible) if self._rules.clean else written
        lines = text.split("\n")
        return lines if lines[-1] else lines[:-1]

    def _play(self, command: str, *, final: bool) -> str:
        episode = self.episode
        step = self._env.step(command)
        answer = observation_lines(step.observation)
        episode.actions.append(command)
        episode.text += answer
        episode.metrics = dict(step.info.get("metrics", {}))
        if not step.info.get("valid", final or command in self.admissible):
            episode.invalid_actions += 1
        self.admissible = step.info["admissible_commands"]
        self._repeats = self._repeats + 1 if self._last == (command, answer) else 1
        self._last = command, answer
        episode.end = self._verdict(step, final)
        return answer

    def _verdict(self, step: Step, final: bool) -> End | None:
        if step.info["won"]:
            return End.WON
        if step.done or final:
            return End.ANSWERED if final else End.LOST
        if len(self.episode.actions) >= self._rules.max_steps:
            return End.STEPS
        return End.REPEATS if self._repeats >= self._rules.max_repeats else None
