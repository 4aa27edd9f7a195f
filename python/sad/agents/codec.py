"""Between the tokens a model reads and writes and the text of a transcript."""

from __future__ import annotations

from typing import Any


class Codec:
    """A fast tokenizer as play needs it: text in pieces, tokenized as it would be whole.

    Args:
        tokenizer: The model's fast tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._breaks: dict[int, bool] = {}
        self.eos: int | None = tokenizer.eos_token_id

    def prompt(self, text: str) -> list[int]:
        """Tokens of the text that begins a transcript, with the BOS if the tokenizer adds one."""
        encoding = self._tokenizer(text, return_special_tokens_mask=True, verbose=False)
        ids, special = encoding["input_ids"], encoding["special_tokens_mask"]
        while special and special[-1]:  # an EOS that the tokenizer adds would end the episode before it begins
            ids, special = ids[:-1], special[:-1]
        return ids

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
