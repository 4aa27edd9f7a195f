"""Token ids that are kept from play: what a model read and wrote, so that training on an episode needs no tokenizer run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from sad.errors import InputError
from sad.trajectories.messages import shown
from sad.trajectories.segment import Segmentation
from sad.trajectories.spans import Span, SpanKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEDY = "Remove the key `kept_tokens` to train on the text, or collect the trajectory again."
_KINDS = re.compile(r"[0-3]*")


@dataclass(frozen=True)
class KeptTokens:
    """The T tokens of an episode, in the order in which the model read and wrote them.

    Args:
        ids: (T,) token ids.
        kinds: (T,) a digit per token: 0 prompt, 1 reason, 2 act, 3 observe.
        prompt: Range [start, stop) of the tokens of a prompt that is not part of the transcript.
        chat: Whether the tokens are those of a conversation, with the marks of a chat template.
        text_digest: `digest` of the trajectory's text at that time.
        decoded_digest: `digest` of the text of all ids. Another tokenizer gives another one.
    """

    ids: list[int]
    kinds: str
    prompt: tuple[int, int]
    chat: bool
    text_digest: str
    decoded_digest: str

    def as_record(self) -> dict[str, Any]:
        """Returns the JSON object of a trajectory file."""
        digests = {"text_digest": self.text_digest, "decoded_digest": self.decoded_digest}
        return {"ids": self.ids, "kinds": self.kinds, "prompt": list(self.prompt), "chat": self.chat, **digests}


def digest(text: str) -> str:
    """Returns a hash of a text, 16 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_kept(value: Any, where: str) -> KeptTokens:
    """Returns the tokens of a JSON object.

    Raises:
        InputError: A part is missing or has another form.
    """
    if isinstance(value, KeptTokens):
        return value
    if not isinstance(value, dict):
        raise InputError(where, "an object with ids and kinds", shown(value), _REMEDY)
    ids, kinds, prompt = value.get("ids"), value.get("kinds"), value.get("prompt", [0, 0])
    if not isinstance(ids, list) or not all(type(token) is int and token >= 0 for token in ids):
        raise InputError(f"{where}.ids", "a list of token ids", shown(ids), _REMEDY)
    if not isinstance(kinds, str) or not _KINDS.fullmatch(kinds) or len(kinds) != len(ids):
        raise InputError(f"{where}.kinds", f"{len(ids)} digits from 0 to 3, one per id", shown(kinds), _REMEDY)
    pair = isinstance(prompt, (list, tuple)) and len(prompt) == 2 and all(type(at) is int for at in prompt)
    if not pair or not 0 <= prompt[0] <= prompt[1] <= len(ids) or kinds[prompt[0] : prompt[1]].strip("0"):
        raise InputError(f"{where}.prompt", "[start, stop] of tokens of kind 0", shown(prompt), _REMEDY)
    chat = value.get("chat", False)
    if not isinstance(chat, bool):
        raise InputError(f"{where}.chat", "true or false", shown(chat), _REMEDY)
    digests = [value.get(key) for key in ("text_digest", "decoded_digest")]
    if not all(isinstance(one, str) for one in digests):
        raise InputError(where, "the keys text_digest and decoded_digest", shown(digests), _REMEDY)
    return KeptTokens(ids, kinds, (prompt[0], prompt[1]), chat, *digests)


def token_offsets(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text of token ids and the character range of each of them.

    The ranges follow each other without gaps. The tokens of a character that several tokens share have its range.
    """
    text = _decode(tokenizer, ids)
    pieces = {token: _decode(tokenizer, [token]) for token in set(ids)}
    offsets, at = [], 0
    for token in ids:
        piece = pieces[token]
        if "\ufffd" in piece or not text.startswith(piece, at):
            return text, _streamed_offsets(tokenizer, ids, text)
        offsets.append((at, at + len(piece)))
        at += len(piece)
    return text, offsets


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


_CONTEXT = 6  # tokens before a token that decide how its own text is written, such as the blank of a first word


def _streamed_offsets(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str) -> list[tuple[int, int]]:
    """Returns the ranges if the text of a token depends on the tokens before it: each is what the token adds to them."""
    offsets: list[tuple[int, int]] = []
    waiting, at, done = 0, 0, 0  # tokens up to `done` have written text[:at]; `waiting` tokens share the next character
    for number in range(len(ids)):
        start = max(0, done - _CONTEXT)
        before = _decode(tokenizer, ids[start:done])
        now = _decode(tokenizer, ids[start : number + 1])
        waiting += 1
        added = now[len(before) :]
        if added.endswith("\ufffd") and number + 1 < len(ids) and waiting < 8 and not text.startswith(added, at):
            continue
        end = min(at + len(added), len(text))
        offsets += [(at, end)] * waiting
        at, done, waiting = end, number + 1, 0
    return offsets


def unusable(kept: KeptTokens, text: str | None, decoded: str | None, use: str) -> str | None:
    """Returns why kept ids are not used for a training; None if they are.

    Args:
        kept: The tokens.
        text: The text of the trajectory.
        decoded: The text of the ids with the tokenizer of the training; None if it does not have all of them.
        use: "auto" or "always", as in `sad.encode_all`.
    """
    if decoded is None or digest(decoded) != kept.decoded_digest:
        return "they are of another tokenizer"
    if digest(text or "") != kept.text_digest:
        return "the text was changed after the play"
    if kept.chat and use == "auto":
        return "they are a conversation with its prompt; to train on it as it was played, pass --kept-ids always"
    return None


def decoded_text(kept: KeptTokens, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Returns the text of the ids; None if the tokenizer does not have all of them."""
    if kept.ids and max(kept.ids) >= len(tokenizer):
        return None
    return _decode(tokenizer, kept.ids)


def cut_prompt(kept: KeptTokens) -> KeptTokens:
    """Returns the tokens without the prompt."""
    start, stop = kept.prompt
    ids, kinds = ([*x[:start], *x[stop:]] for x in (kept.ids, kept.kinds))
    return KeptTokens(ids, "".join(kinds), (start, start), kept.chat, kept.text_digest, kept.decoded_digest)


def kept_segmentation(kept: KeptTokens, tokenizer: PreTrainedTokenizerBase) -> tuple[Segmentation, list[tuple[int, int]]]:
    """Returns the text of the ids with its spans, and the character range of each id."""
    text, offsets = token_offsets(tokenizer, kept.ids)
    spans: list[Span] = []
    at = 0
    for digit, group in groupby(kept.kinds):
        stop = at + len(list(group))
        start, end = offsets[at][0], offsets[stop - 1][1]
        if spans and start < spans[-1].end:  # a character whose tokens have two kinds
            start = spans[-1].end
        if digit != "0" and start < end:
            spans.append(Span(start, end, SpanKind(int(digit))))
        at = stop
    written = [span for span in spans if span.kind is not SpanKind.OBSERVE]
    return Segmentation(text, written, [], [span for span in spans if span.kind is SpanKind.OBSERVE]), offsets
