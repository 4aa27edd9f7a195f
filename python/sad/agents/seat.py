"""One seat at the table: an episode in progress, its copy of the environment, and what may be written next."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from sad.agents.codec import Codec
from sad.agents.envs.protocol import Env, Task
from sad.agents.episode import ACTION, End, Episode, closing_command, observation_lines


@dataclass(frozen=True)
class Rules:
    """What a seat needs to know of the game; each field means what it means as an argument of `play`."""

    max_steps: int
    max_turn_tokens: int
    max_repeats: int
    max_length: int
    decoding: str
    temperature: float
    seed: int


class Seat:
    """Turns observations into tokens, tokens into lines, and lines into actions.

    Whatever stands in `unread` is for the model to read next; when it has read all, `write` the next token.
    A token that ends an `Action:` line plays it, and the answer is added to what is unread.

    Args:
        env: The environment, for this seat alone.
        task: What is played.
        codec: The model's tokenizer.
        rules: The rules.
    """

    def __init__(self, env: Env, task: Task, codec: Codec, rules: Rules) -> None:
        self.env, self.codec, self.rules = env, codec, rules
        self.episode = Episode(task, decoding=rules.decoding)
        self.unread: list[int] = []
        self._turn: list[int] = []  # tokens written since the last observation
        self._complete = 0  # lines of this turn that have been looked at
        self._commands: list[list[int]] | None = None  # what may follow, while an admissible command is written
        self._last: tuple[str, str] | None = None  # last action and the environment's answer
        self._repeats = 0
        # of the task's own: what an agent samples does not depend on who sits beside it
        self._random = torch.Generator().manual_seed(zlib.crc32(f"{rules.seed}/{task.id}".encode()))
        text = observation_lines(env.reset(task))
        self._observe(text, codec.prompt(text))

    @property
    def over(self) -> bool:
        """Whether the episode has ended."""
        return self.episode.end is not None

    def take(self, count: int) -> list[int]:
        """The first `count` tokens the model has not read yet."""
        taken, self.unread = self.unread[:count], self.unread[count:]
        return taken

    @property
    def chooses(self) -> bool:
        """Whether the next token is not simply the model's likeliest, so that `choose` must be asked."""
        return self.rules.temperature > 0 or self.rules.decoding == "admissible"

    def choose(self, logits: Tensor) -> int:
        """The next token: the best, or sampled at the temperature, of those that are allowed.

        Args:
            logits: (V,) of this row, on the CPU.
        """
        if self.rules.temperature > 0:
            uniform = torch.rand(logits.shape, generator=self._random, dtype=torch.float64)
            gumbel = -(-uniform.clamp_min(1e-300).log()).log()  # the argmax of logits + Gumbel noise is a sample
            logits = logits.double() / self.rules.temperature + gumbel
        allowed = self._allowed()
        return int(logits.argmax()) if allowed is None else allowed[int(logits[allowed].argmax())]

    def write(self, token: int) -> None:
        """Writes a token and does what follows from it: a complete `Action:` line is played."""
        if token == self.codec.eos:
            self._stop()
            return
        self._write([token])
        if self.codec.breaks_line(token):
            self._read_lines()
        if not self.over and len(self._turn) >= self.rules.max_turn_tokens:
            self._end(End.ENDLESS)
        elif not self.over and len(self.episode.token_ids) >= self.rules.max_length:
            self._end(End.CONTEXT)

    def _write(self, tokens: list[int]) -> None:
        self._turn += tokens
        self.unread += tokens
        self.episode.token_ids += tokens
        self.episode.written += [True] * len(tokens)
        if self._commands is not None:
            self._commands = [rest[1:] for rest in self._commands if rest[:1] == tokens and len(rest) > 1] or None

    def _stop(self) -> None:
        """An end of sequence ends the line as well; the transcript goes on only if that line was a command."""
        if self._text() and not self._text().endswith("\n"):
            self._write(self.codec.after("", "\n"))
        self._read_lines()
        if not self.over:
            self._end(End.NO_ACTION)

    def _read_lines(self) -> None:
        lines = self._text().split("\n")[:-1]
        for number, line in enumerate(lines[self._complete :], start=self._complete):
            command = closing_command(line)
            if command is not None:
                # a token may hold more than the line's end; what follows it was not asked for
                self._act(command[0], final=command[1], written="".join(f"{one}\n" for one in lines[: number + 1]))
                return
        self._complete = len(lines)

    def _act(self, command: str, *, final: bool, written: str) -> None:
        episode = self.episode
        episode.text += written
        episode.actions.append(command)
        step = self.env.step(command)
        answer = observation_lines(step.observation)
        self._repeats = self._repeats + 1 if self._last == (command, answer) else 1
        self._last = command, answer
        last_line = written.splitlines(keepends=True)[-1]
        self._observe(answer, self.codec.after(last_line, answer))
        if step.info["won"]:
            self._end(End.WON)
        elif step.done or final:
            self._end(End.ANSWERED if final else End.LOST)
        elif len(episode.actions) >= self.rules.max_steps:
            self._end(End.STEPS)
        elif self._repeats >= self.rules.max_repeats:
            self._end(End.REPEATS)

    def _observe(self, text: str, tokens: list[int]) -> None:
        episode = self.episode
        episode.text += text
        episode.token_ids += tokens
        episode.written += [False] * len(tokens)
        self.unread += tokens
        self._turn, self._complete, self._commands = [], 0, None
        if len(episode.token_ids) >= self.rules.max_length:
            self._end(End.CONTEXT)

    def _end(self, end: End) -> None:
        # won while the context filled up is won: the final state decides
        if not self.over or end is End.WON:
            self.episode.end = end
            self.episode.text += self._text()

    def _allowed(self) -> list[int] | None:
        """Tokens that may come next; None for all."""
        if self.rules.decoding != "admissible":
            return None
        line = self._text().rpartition("\n")[2]
        if self._commands is None and line.rstrip() == ACTION:
            blank = "" if line.endswith(" ") else " "
            self._commands = [self.codec.after(line, f"{blank}{one}\n") for one in self.env.admissible_commands]
        return sorted({rest[0] for rest in self._commands}) if self._commands else None

    def _text(self) -> str:
        return self.codec.text(self._turn)
