"""Between the tokens a model reads and writes and the text of a transcript."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sad.errors import InputError

_TURN = "<a turn of the agent>"  # stands for what the agent wrote when a template is asked for what follows it


class Codec:
    """A fast tokenizer as play needs it: text in pieces, tokenized as it would be whole.

    Args:
        tokenizer: The model's fast tokenizer.
        stops: Further tokens that end what the model writes, besides the tokenizer's end of sequence.
    """

    def __init__(self, tokenizer: Any, stops: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._breaks: dict[int, bool] = {}
        self.stops = frozenset({tokenizer.eos_token_id, *stops} - {None})

    def opening(self, text: str) -> list[int]:
        """Tokens of the text that begins a transcript, with the BOS if the tokenizer adds one."""
        encoding = self._tokenizer(text, return_special_tokens_mask=True, verbose=False)
        ids, special = encoding["input_ids"], encoding["special_tokens_mask"]
        while special and special[-1]:  # an EOS that the tokenizer adds would end the episode before it begins
            ids, special = ids[:-1], special[:-1]
        return ids

    def answer(self, turn: str, answer: str) -> list[int]:
        """Tokens of the environment's answer to a turn, up to where the model writes again."""
        last_line = turn[: turn.rfind("\n") + 1].splitlines(keepends=True)[-1:]
        return self.after("".join(last_line), answer)

    @property
    def line_end(self) -> list[int]:
        """Tokens that end the line of a model that stopped within it."""
        return self.after("", "\n")

    def after(self, before: str, text: str) -> list[int]:
        """Tokens of `text` as they are when `before` stands in front of it, if a token begins there."""
        encoding = self._tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        first = next((i for i, (start, _) in enumerate(offsets) if start >= len(before)), len(ids))
        if first > 0 and offsets[first - 1][1] > len(before):  # a token stands across the seam
            return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids[first:]

    def text(self, tokens: list[int]) -> str:
        """The text of tokens, unembellished."""
        return self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False)

    def breaks_line(self, token: int) -> bool:
        """Whether the token's text holds a line end, so that a line may be complete."""
        if token not in self._breaks:
            self._breaks[token] = "\n" in self.text([token])
        return self._breaks[token]


class ChatCodec(Codec):
    """The same as a conversation: what the world says is the user's message, what the model writes the assistant's.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        stops: As of `Codec`.

    Raises:
        InputError: The tokenizer has no chat template, or one that drops what was said.
    """

    def __init__(self, tokenizer: Any, stops: Collection[int] = ()) -> None:
        super().__init__(tokenizer, stops)
        if not tokenizer.chat_template:
            raise InputError("tokenizer", "a tokenizer with a chat template", "one without", "Play without `chat`.")

    def opening(self, text: str) -> list[int]:
        """Tokens of a conversation that begins with this message, up to where the model writes."""
        return self._tokens(self._render([text.rstrip("\n")]))

    def answer(self, turn: str, answer: str) -> list[int]:
        """Tokens from the end of the model's message to where it writes again."""
        rendered = self._render([".", _TURN, answer.rstrip("\n")])
        _, found, rest = rendered.rpartition(_TURN)
        if not found:
            remedy = "Set a tokenizer.chat_template that keeps all messages."
            raise InputError("tokenizer", "a chat template that keeps every message", "one that drops some", remedy)
        return self._tokens(rest)

    @property
    def line_end(self) -> list[int]:
        """None: the message ends there, as the template has it."""
        return []

    def _render(self, said: list[str]) -> str:
        """A conversation in which user and assistant speak in turn."""
        messages = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(said)]
        return self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _tokens(self, rendered: str) -> list[int]:
        return self._tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
