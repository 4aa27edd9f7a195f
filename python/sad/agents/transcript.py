"""Tokenization of a transcript that grows piece by piece: as text, or as messages of a chat template."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sad.errors import InputError
from sad.trajectories.kept import token_offsets
from sad.trajectories.rendering import render

_TURN = "<a turn of the agent>"  # placeholder for an assistant message when the template renders the text after it


class TranscriptTokenizer:
    """Tokenizes the pieces of a transcript so that their tokens match those of the whole text.

    Args:
        tokenizer: Fast tokenizer of the model.
        stop_ids: Tokens that end a turn, in addition to the end-of-sequence token of the tokenizer.

    Attributes:
        stop_ids: All tokens that end a turn.
    """

    def __init__(self, tokenizer: Any, stop_ids: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._has_newline: dict[int, bool] = {}
        self.stop_ids = frozenset({tokenizer.eos_token_id, *stop_ids} - {None})

    def encode_opening(self, text: str) -> list[int]:
        """Returns the tokens of the first text of a transcript, with BOS if the tokenizer adds one."""
        encoding = self._tokenizer(text, return_special_tokens_mask=True, verbose=False)
        ids, special = encoding["input_ids"], encoding["special_tokens_mask"]
        while special and special[-1]:  # an EOS that the tokenizer appends would end the episode at its start
            ids, special = ids[:-1], special[:-1]
        return ids

    is_chat = False

    def encode_prompted(self, prompt: str, text: str) -> tuple[list[int], tuple[int, int]]:
        """Returns the tokens of a prompt and the first text of a transcript, and the range [start, stop) of the prompt.

        If a token crosses the boundary, the text is tokenized alone. A conversation has no such range: (0, 0).
        """
        if not prompt:
            return self.encode_opening(text), (0, 0)
        whole = self._tokenizer(prompt + text, return_special_tokens_mask=True, return_offsets_mapping=True, verbose=False)
        special, offsets = whole["special_tokens_mask"], whole["offset_mapping"]
        start = next((number for number, mark in enumerate(special) if not mark), 0)
        stop = next((n for n, (begin, end) in enumerate(offsets) if begin >= len(prompt) and end > begin), len(special))
        ids = self.encode_opening(prompt + text)
        if stop > 0 and offsets[stop - 1][1] > len(prompt):
            before = self.encode_opening(prompt)
            ids, stop = [*before, *self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]], len(before)
        return ids, (start, stop)

    def observed(self, ids: list[int], observation: str) -> list[bool]:
        """Returns which tokens of an observation the environment wrote: all of them, or those between a template's marks."""
        return [True] * len(ids)

    def encode_observation(self, turn: str, observation: str) -> list[int]:
        """Returns the tokens between a turn and the next one: the observation after this turn."""
        last_line = turn[: turn.rfind("\n") + 1].splitlines(keepends=True)[-1:]
        return self.encode_after("".join(last_line), observation)

    @property
    def newline_ids(self) -> list[int]:
        """Tokens that end the last line of a turn if the model stopped inside this line."""
        return self.encode_after("", "\n")

    def encode_after(self, prefix: str, text: str) -> list[int]:
        """Returns the tokens of `text` when it follows `prefix`.

        If a token crosses the boundary, `text` is tokenized alone.
        """
        encoding = self._tokenizer(prefix + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        first = next((i for i, (start, _) in enumerate(offsets) if start >= len(prefix)), len(ids))
        if first > 0 and offsets[first - 1][1] > len(prefix):
            return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids[first:]

    def decode(self, tokens: list[int]) -> str:
        """Returns the exact text of the tokens, without cleanup of spaces."""
        return self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False)

    def offsets(self, tokens: list[int]) -> tuple[str, list[tuple[int, int]]]:
        """Returns the text of the tokens and the character range of each of them."""
        return token_offsets(self._tokenizer, tokens)

    def contains_newline(self, token: int) -> bool:
        """Returns whether the text of the token contains a line end, so that a line can be complete."""
        if token not in self._has_newline:
            self._has_newline[token] = "\n" in self.decode([token])
        return self._has_newline[token]


class ChatTranscriptTokenizer(TranscriptTokenizer):
    """Tokenizes a transcript as a conversation: observations are user messages, turns are assistant messages.

    Args:
        tokenizer: Fast tokenizer with a chat template.
        stop_ids: Tokens that end a turn, in addition to the end-of-sequence token of the tokenizer.

    Raises:
        InputError: The tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, stop_ids: Collection[int] = ()) -> None:
        super().__init__(tokenizer, stop_ids)
        if not tokenizer.chat_template:
            raise InputError("tokenizer", "a tokenizer with a chat template", "one without", "Leave out chat=True.")

    def encode_opening(self, text: str) -> list[int]:
        """Returns the tokens of a conversation with this first user message, up to the assistant's turn."""
        return self._encode_rendered(self._render([text.rstrip("\n")]))

    is_chat = True

    def encode_prompted(self, prompt: str, text: str) -> tuple[list[int], tuple[int, int]]:
        return self.encode_opening(prompt + text), (0, 0)

    def observed(self, ids: list[int], observation: str) -> list[bool]:
        text, offsets = token_offsets(self._tokenizer, ids)
        start = text.find(observation.strip())
        end = start + len(observation.strip())
        return [start <= begin and stop <= end and begin < stop for begin, stop in offsets]

    def encode_observation(self, turn: str, observation: str) -> list[int]:
        """Returns the tokens from the end of the assistant message to the start of the next one.

        Raises:
            InputError: The chat template drops messages.
        """
        rendered = self._render([".", _TURN, observation.rstrip("\n")])
        _, found, rest = rendered.rpartition(_TURN)
        if not found:
            remedy = "Set a tokenizer.chat_template that keeps all messages."
            raise InputError("tokenizer", "a chat template that keeps every message", "one that drops some", remedy)
        return self._encode_rendered(rest)

    @property
    def newline_ids(self) -> list[int]:
        """An empty list: the template ends the message without a line end."""
        return []

    def _render(self, contents: list[str]) -> str:
        """Renders a conversation with alternating user and assistant messages."""
        messages = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]
        return render(self._tokenizer, messages, None, add_generation_prompt=True)

    def _encode_rendered(self, rendered: str) -> list[int]:
        return self._tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
