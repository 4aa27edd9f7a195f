"""Segments messages: renders them with a tokenizer's chat template and finds in the text what the assistant wrote.

The conversation is rendered once, whole, since templates treat a message by its place in it (some drop the reasoning
of earlier turns). An assistant turn is the text between the template's header and its end mark, which a probe
conversation reveals; inside it the message's parts are searched in order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.formats import ChatFormat
from sad.trajectories.lines import Unparsed
from sad.trajectories.messages import check_messages, content_text, message_parts
from sad.trajectories.spans import Span
from sad.trajectories.turns import Turn, find_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Frame(NamedTuple):
    """What a template puts before and after an assistant turn; empty where it cannot be told."""

    header: str
    end: str


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: Any, **options: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        remedy = "Set tokenizer.chat_template, or render the messages yourself and pass text."
        raise InputError("tokenizer", "a tokenizer with a chat template", "one without", remedy)
    try:
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
    except Exception as error:  # templates raise what they like: jinja2's errors, KeyError, TypeError
        remedy = "Check the roles, their order, and that the template knows the messages' keys."
        got = f"{type(error).__name__}: {error}"
        raise InputError("messages", "messages that the tokenizer's chat template takes", got, remedy) from error


def _common_prefix(a: str, b: str) -> str:
    length = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return a[:length]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """All that could end a turn: not the BOS, which some templates write at the start of the next."""
    special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return [token for token in special if token != tokenizer.bos_token or token == tokenizer.eos_token]


def _frame(tokenizer: PreTrainedTokenizerBase) -> _Frame:
    ask, reply = {"role": "user", "content": "sadprobeuser"}, {"role": "assistant", "content": "sadprobereply"}
    try:
        asked = _render(tokenizer, [ask], None).rpartition("sadprobeuser")[2]
        prompted = _render(tokenizer, [ask], None, add_generation_prompt=True).rpartition("sadprobeuser")[2]
        rendered = _render(tokenizer, [ask, reply, ask, reply], None)
        _, before, between, _, after = re.split("sadprobeuser|sadprobereply", rendered)
    except (InputError, ValueError):  # a template with demands of its own
        return _Frame("", "")
    header = before.removeprefix(asked)
    if prompted.removeprefix(asked):  # a generation prompt may go on into the turn (`<think>`)
        header = _common_prefix(header, prompted.removeprefix(asked))
    end = _common_prefix(between, after).strip()
    if not end:  # not written after the last turn: the first special token after another turn
        end = min((token for token in _special_tokens(tokenizer) if token in between), key=between.index, default="")
    return _Frame(header if header.strip() else "", end)


def segment_chat(
    messages: Sequence[dict[str, Any]],
    form: ChatFormat,
    tokenizer: PreTrainedTokenizerBase,
    include_prefix: bool,
    tools: Sequence[dict[str, Any]] | None,
) -> tuple[str, list[Span], list[Unparsed]]:
    """The rendered text, its spans in order, and assistant messages without content.

    Raises:
        InputError: The messages are malformed, or the template refuses, drops or rewrites one.
    """
    messages = check_messages(messages)
    text = _render(tokenizer, messages, tools)
    header, end_mark = _frame(tokenizer)
    marks = frozenset({end_mark, *_special_tokens(tokenizer)} - {""})
    spans: list[Span] = []
    unparsed: list[Unparsed] = []
    cursor = 0
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if message["role"] != "assistant":
            content = content_text(message).strip()
            at = text.find(content, cursor)  # templates may rewrite what others wrote (JSON of a tool's result)
            cursor = at + len(content) if at >= 0 else cursor
            continue
        parts = message_parts(message, form, where)
        if not parts:
            unparsed.append(Unparsed(text.count("\n", 0, cursor) + 1, "", f"{where} of the assistant is empty"))
        at = text.find(header, cursor)
        begin = at + len(header) if at >= 0 else cursor
        following = text.find(header, begin) if header else -1
        limit = following if following >= 0 else len(text)
        mark = text.find(end_mark, begin, limit) if end_mark else -1
        found = find_parts(text, parts, begin, mark if mark >= 0 else limit, where)
        turn = Turn(text, form, begin, limit, bool(header) and at >= 0, end_mark, marks, include_prefix)
        cursor = turn.label(found)
        spans += turn.spans
        unparsed += turn.unparsed
    return text, spans, unparsed
