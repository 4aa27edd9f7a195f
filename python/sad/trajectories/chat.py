"""Segments messages: renders them with a tokenizer's chat template and finds in the text what the assistant wrote.

The conversation is rendered once, whole, since templates treat a message by its place in it (some drop the reasoning
of earlier turns). An assistant turn is the text between the template's header and its end mark, which a probe
conversation reveals; inside it the message's parts are searched in order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.formats import ChatFormat, Format, get_format
from sad.trajectories.lines import Unparsed, segment_lines
from sad.trajectories.messages import Part, check_messages, content_text, message_parts
from sad.trajectories.spans import Span, SpanKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BLANKS = re.compile(r"\s*")
_REST_OF_LINE = re.compile(r"[^\S\n]*\n?")


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


class Found(NamedTuple):
    """Where a part stands in the rendered text."""

    part: Part
    start: int
    end: int


def find_parts(text: str, parts: list[Part], begin: int, limit: int, where: str) -> list[Found]:
    """Each part in text[begin:limit], one after the other.

    Raises:
        InputError: A part is not there as it was written.
    """
    found = []
    for part in parts:
        start = None
        for needle in part.needles:
            at = text.find(needle, begin, limit)
            if at < 0:
                shown = needle if len(needle) <= 60 else needle[:60] + "..."
                remedy = (
                    "The chat template drops or rewrites it, as some do with the reasoning of earlier turns; set a "
                    "tokenizer.chat_template that keeps it."
                )
                raise InputError(where, f"its {part.role} in the rendered text", f"a turn without {shown!r}", remedy)
            start, begin = (at if start is None else start), at + len(needle)
        found.append(Found(part, start, begin))
    return found


@dataclass
class Turn:
    """One assistant turn.

    Args:
        text: The rendered conversation.
        form: Its format.
        begin: Where the turn may begin.
        limit: Before where it ends.
        framed: Whether it does begin at `begin`, the template's header being known.
        end_mark: What the template ends turns with, or "".
        marks: That, and all special tokens that may end one.
        include_prefix: Whether spans hold the tags before reasoning and calls.
    """

    text: str
    form: ChatFormat
    begin: int
    limit: int
    framed: bool
    end_mark: str
    marks: frozenset[str]
    include_prefix: bool
    spans: list[Span] = field(default_factory=list)
    unparsed: list[Unparsed] = field(default_factory=list)

    def label(self, parts: list[Found]) -> int:
        """Fills `spans` and `unparsed`; returns where the turn ends."""
        after = self.begin
        for number, found in enumerate(parts):
            start = self._start(found, after, first=number == 0)
            after = self._end(found, last=number == len(parts) - 1)
            if found.part.role == "text" and self._label_by_prefixes(found, after):
                continue
            calls_follow = any(later.part.role == "calls" for later in parts[number + 1 :])
            thought = found.part.role == "reasoning" or (found.part.role == "text" and calls_follow)
            self.spans.append(Span(start, after, SpanKind.REASON if thought else SpanKind.ACT))
        return after

    def _start(self, found: Found, after: int, first: bool) -> int:
        lead = self.text[after : found.start]
        if found.part.role == "reasoning":
            openings = "|".join(re.escape(opening) for opening, _ in self.form.think_tags)
            tag = re.search(rf"(?:{openings})\s*\Z", lead)
        elif found.part.role == "calls":
            tag = re.search(rf"(?:{'|'.join(map(re.escape, self.form.call_openers))})\s*", lead)
        else:  # what a template puts before the first visible text, such as an empty think block, is its own
            return found.start if first or not self.include_prefix else after
        if tag:
            return after + (tag.start() if self.include_prefix else tag.end())
        own = self.framed or not first  # all of `lead` was written in this turn
        return after + len(lead) - len(lead.lstrip()) if own and self.include_prefix else found.start

    def _end(self, found: Found, last: bool) -> int:
        closings = "|".join(re.escape(closing) for _, closing in self.form.think_tags)
        closed = re.compile(rf"(?:\s*(?:{closings}))?").match(self.text, found.end).end()
        if not last:
            return _BLANKS.match(self.text, closed).end()
        return self._end_of_turn(closed, found.part.role == "calls")

    def _end_of_turn(self, after: int, somewhere: bool) -> int:
        """Through the end mark that stands at `after` or, `somewhere`, follows it (the text of calls is not known).

        A turn may end with another mark than most do (calls often have their own), or with several special tokens; without
        any it ends with its line.
        """
        marks = "|".join(map(re.escape, sorted(self.marks, key=len, reverse=True)))
        at = _BLANKS.match(self.text, after, self.limit).end()
        pattern = re.compile(marks)
        first = (pattern.search if somewhere else pattern.match)(self.text, at, self.limit) if marks else None
        if first is None:
            return _REST_OF_LINE.match(self.text, after).end()
        row = re.compile(rf"(?:(?:{marks})\s*)+").match(self.text, first.start(), self.limit).group()
        usual = row.find(self.end_mark) if self.end_mark else -1
        return first.start() + usual + len(self.end_mark) if usual >= 0 else first.end()

    def _label_by_prefixes(self, found: Found, end: int) -> bool:
        """Visible text that begins with a prefix of a text format is labelled by that format."""
        written = self.text[found.start : found.end]
        for form in map(get_format, self.form.text_formats):
            if not isinstance(form, Format) or not _begins_with_prefix(written, form):
                continue
            spans, unparsed = segment_lines(written, form, self.include_prefix)
            for span in spans:
                stop = end if span.end == len(written) else span.end + found.start
                self.spans.append(Span(span.start + found.start, stop, span.kind))
            line = self.text.count("\n", 0, found.start)
            self.unparsed += [item._replace(line=item.line + line) for item in unparsed]
            return True
        return False


def _begins_with_prefix(text: str, form: Format) -> bool:
    return any(form.patterns[key].match(text) for key in ("reason", "act"))


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
