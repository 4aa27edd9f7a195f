"""Labels tokens that a model generated, without tokenizing their text again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sad.errors import InputError
from sad.trajectories.formats import ChatFormat, Format
from sad.trajectories.segment import segment
from sad.trajectories.spans import Span, SpanKind, span_ids_from_offsets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"  # what a decoder writes for a part of a character


def decode_with_offsets(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]]]:
    """Decodes tokens, special ones included, and returns the text and the characters of each token.

    Tokens are decoded together with the one before, because the text of a token can depend on it. Tokens that share a
    character, such as the bytes of an emoji, all have the range of that character.

    Args:
        token_ids: (T,) token ids.
        tokenizer: The tokenizer.

    Returns:
        The text, and (T,) half-open character ranges.
    """

    def decode(start: int, end: int) -> str:
        return tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    ids, pieces, offsets = list(token_ids), [], []
    context, done, length = 0, 0, 0  # first token that is decoded along, tokens whose text is known, its characters
    for end in range(1, len(ids) + 1):
        known, text = decode(context, done), decode(context, end)
        if end < len(ids) and (text.endswith(_INCOMPLETE) or len(text) <= len(known)):
            continue  # the next token completes it
        piece = text[len(known) :]
        offsets += [(length, length + len(piece))] * (end - done)
        pieces.append(piece)
        context, done, length = done, end, length + len(piece)
    return "".join(pieces), offsets


def label_generated(
    prompt_ids: Sequence[int],
    generated_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    format: str | Format | ChatFormat = "chat",
    *,
    written: Sequence[bool] | None = None,
    observe: bool = False,
) -> list[int]:
    """Returns the span ids of generated tokens, from the spans of their text.

    Args:
        prompt_ids: Token ids of the prompt, without padding. Nothing in it is a span.
        generated_ids: (T,) token ids that follow the prompt: what the model wrote, and answers of the environment between.
        tokenizer: The model's tokenizer.
        format: The format of the text, as for `sad.segment`.
        written: (T,) whether the model wrote each token. Default: it wrote all of them.
        observe: Whether to label what the environment wrote (3).

    Returns:
        (T,) span ids: 0 none, 1 reason, 2 act, 3 observe.

    Raises:
        InputError: The format is unknown, or `written` has another length.
    """
    if written is not None and len(written) != len(generated_ids):
        remedy = "Pass one entry per generated token."
        raise InputError("written", f"{len(generated_ids)} entries", str(len(written)), remedy)
    if not len(generated_ids):
        return []
    text, offsets = decode_with_offsets([*prompt_ids, *generated_ids], tokenizer)
    begin = offsets[len(prompt_ids)][0]
    line = text.rfind("\n", 0, begin) + 1  # a prompt may end inside a line, such as `Thought:`
    found = segment(text, format, tokenizer=tokenizer, prompt_chars=line)
    spans = sorted([*found.spans, *(found.observations if observe else [])])
    spans = [Span(max(start, begin), end, kind) for start, end, kind in spans if end > begin]
    labels = span_ids_from_offsets(offsets[len(prompt_ids) :], spans, backend="auto").tolist()
    if written is None:
        return labels
    elsewhere = SpanKind.OBSERVE if observe else SpanKind.NONE
    return [label if own else (elsewhere if label else 0) for label, own in zip(labels, written)]
