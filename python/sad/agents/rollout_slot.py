"""One seat at the table: a match that a model plays token by token, and what may be written next."""

from __future__ import annotations

import torch
from torch import Tensor

from sad.agents.episode import End
from sad.agents.episode_runner import Match, Rules
from sad.agents.transcript import Codec


class Seat:
    """Turns observations into tokens, and tokens into lines for the match.

    Whatever stands in `unread` is for the model to read next; when it has read all, `write` the next token.
    A token that ends an `Action:` line plays it, and the answer is added to what is unread.

    Args:
        match: The episode in progress.
        codec: The model's tokenizer.
        rules: The rules.
        max_length: Tokens per episode.
    """

    def __init__(self, match: Match, codec: Codec, rules: Rules, max_length: int) -> None:
        self.match, self.codec, self.rules, self._max_length = match, codec, rules, max_length
        self.episode = match.episode
        self.unread: list[int] = []
        self._turn: list[int] = []  # tokens written since the last observation
        self._commands: list[list[int]] | None = None  # what may follow, while an admissible command is written
        self._random = torch.Generator().manual_seed(match.episode.sampling_seed)
        self._observe(codec.opening(match.opening))

    @property
    def over(self) -> bool:
        """Whether the episode has ended."""
        return self.match.over

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
        if token in self.codec.stops:
            self._stop()
            return
        self._write([token])
        if self.codec.breaks_line(token):
            self._play(self._text())
        if not self.over and len(self._turn) >= self.rules.max_turn_tokens:
            self.match.end(End.ENDLESS, self._text())
        elif not self.over and len(self.episode.token_ids) >= self._max_length:
            self.match.end(End.CONTEXT, self._text())

    def _write(self, tokens: list[int]) -> None:
        self._turn += tokens
        self.unread += tokens
        self.episode.token_ids += tokens
        self.episode.written += [True] * len(tokens)
        if self._commands is not None:
            self._commands = [rest[1:] for rest in self._commands if rest[:1] == tokens and len(rest) > 1] or None

    def _stop(self) -> None:
        """An end of sequence ends the line as well; the transcript goes on only if that line was a command."""
        text = self._text()
        if text and not text.endswith("\n"):
            self._write(self.codec.line_end)
            text += "\n"
        if not self._play(text):
            self.match.end(End.NO_ACTION, text)

    def _play(self, text: str) -> bool:
        """Plays the turn's command, if its lines so far hold one."""
        answer = self.match.turn(text)
        if answer is None:
            return False
        self._observe(self.codec.answer(text, answer))
        return True

    def _observe(self, tokens: list[int]) -> None:
        self.episode.token_ids += tokens
        self.episode.written += [False] * len(tokens)
        self.unread += tokens
        self._turn, self._commands = [], None
        if len(self.episode.token_ids) >= self._max_length:
            self.match.end(End.CONTEXT)

    def _allowed(self) -> list[int] | None:
        """Tokens that may come next; None for all."""
        if self.rules.decoding != "admissible":
            return None
        if self._commands is None and self.match.opens_command(text := self._text()):
            line = text.rpartition("\n")[2]
            blank = "" if line.endswith(" ") else " "
            self._commands = [self.codec.after(line, f"{blank}{one}\n") for one in self.match.admissible]
        return sorted({rest[0] for rest in self._commands}) if self._commands else None

    def _text(self) -> str:
        return self.codec.text(self._turn)
