"""Renders messages with a tokenizer's chat template, and finds the assistant's turns in the result.

A turn is what the rendering of `messages[:k+1]` adds to the rendering of `messages[:k]` plus the generation prompt. It ends
with whole special tokens. So marks that stand as text in a message are text, and borders are never guessed from words.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from sad.errors import InputError
from sad.limits import TookTooLongError, time_limit
from sad.trajectories.messages import Form, Message, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEMPLATE_SECONDS, _TEMPLATE_CHARACTERS = 20, 1 << 26  # of one rendering; a conversation needs milliseconds
_REST_OF_LINE = re.compile(r"[^\S\n]*\n?")
_EMPTY_THOUGHT = re.compile(r"\s*(?:<think>\s*</think>|\[THINK\]\s*\[/THINK\])\s*")
_ONLY_OPENER = re.compile(r"\s*(?:<think>|\[THINK\])\s*")
_THINK_OPENER = re.compile(r"(?:<think>|\[THINK\])\s*\Z")


def common_prefix(a: str, b: str) -> int:
    """Returns the length of the longest common prefix, in O(n log n) character comparisons."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Region(NamedTuple):
    """The characters of an assistant turn in a rendered text, from after its header through its end mark.

    Args:
        start: First character that the model writes.
        end: Index after the last one.
        has_header: Whether the template's generation prompt ends at `start`. Without one the model's first character is not
            known.
    """

    start: int
    end: int
    has_header: bool


@dataclass
class Renderer:
    """Renders one conversation in one form.

    Args:
        tokenizer: The tokenizer with the chat template.
        messages: The messages, prepared for `form`.
        form: How the messages are written.
        tools: The tool descriptions.
        variables: Variables of the template, such as `enable_thinking`.
    """

    tokenizer: PreTrainedTokenizerBase
    messages: list[Message]
    form: Form
    tools: Any
    variables: dict[str, Any] = field(default_factory=dict)
    _cache: dict[tuple[int, bool], str] = field(default_factory=dict)

    def render(self, count: int, prompt: bool = False) -> str:
        """Returns the text of the first `count` messages, with the generation prompt if `prompt`.

        Raises:
            InputError: The template rejects the messages.
        """
        key = (count, prompt)
        if key not in self._cache:
            written = [message.as_dict(self.form) for message in self.messages[:count]]
            text = render(self.tokenizer, written, self.tools, add_generation_prompt=prompt, **self.variables)
            if self.form.thought_after_prompt and count > 1 and not prompt:
                text = self._with_thought(text, count)
            self._cache[key] = text
        return self._cache[key]

    def _with_thought(self, text: str, count: int) -> str:
        """Returns a text with the thought of its last message, if the generation prompt opens a think tag for it."""
        last = self.messages[count - 1]
        opened = self.render(count - 1, prompt=True)
        header = common_prefix(opened, text)
        if last.role != "assistant" or not last.reasoning or not _ONLY_OPENER.fullmatch(opened, header):
            return text
        closing = "[/THINK]" if "[THINK]" in opened[header:] else "</think>"
        return f"{opened}{last.reasoning.strip()}\n{closing}\n\n{text[header:]}"

    @cached_property
    def specials(self) -> re.Pattern[str] | None:
        """Matches the special tokens that can end a turn; some templates write the BOS before the next turn."""
        tokenizer = self.tokenizer
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        special |= {tokenizer.eos_token} if tokenizer.eos_token else set()
        special -= {tokenizer.bos_token} if tokenizer.bos_token != tokenizer.eos_token else set()
        names = sorted(special, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names))) if names else None

    def find_turn(self, text: str, number: int, after: int) -> Region | None:
        """Returns the turn of message `number` in a text that renders at least the messages up to it.

        Args:
            text: The rendered text.
            number: Index of an assistant message in `messages`.
            after: End of the turn before.

        Returns:
            The region; None if the text has another turn here, for example one without its thoughts.
        """
        try:
            opened, closed = self.render(number, prompt=True) if number else "", self.render(number + 1)
        except InputError:  # the template rejects a part of a conversation that it accepts as a whole
            return None
        start = self._start(opened, closed)
        if number and start < common_prefix(self.render(number), opened) - 64:
            start = self._start_after_rewrite(number, opened, closed)
        if start < 0:
            return None
        stop = self._common_end(closed, text)
        if self._only_marks(closed[stop:]) and stop >= start:
            if self._two_marks(closed[start:]):  # such as an end of text after the last turn only
                stop = min(stop, self._common_end(closed, self.render(number + 1, prompt=True)))
            marked = bool(closed[stop:].strip())
        else:
            start, stop, marked = self._find_without_empty_thought(text, number, start, after)
            if start < 0:
                return None
        return Region(start, self._end(text, start, stop, marked), self._prompts(number))

    def _prompts(self, number: int) -> bool:
        """Returns whether the template writes a header when it is asked for a generation prompt."""
        try:
            return number > 0 and self.render(number, prompt=True) != self.render(number)
        except InputError:
            return True

    def _start(self, opened: str, closed: str) -> int:
        start = common_prefix(opened, closed)
        if start < len(opened):  # the generation prompt goes on otherwise than this turn: back to a border
            marks = (
                [match.end() for match in self.specials.finditer(opened, max(0, start - 200), start)]
                if self.specials
                else []
            )
            start = max(opened.rfind("\n", 0, start) + 1, opened.rfind(">", 0, start) + 1, *marks, 0)
        if opener := _THINK_OPENER.search(closed, max(0, start - 40), start):
            start = opener.start()
        return start

    def _start_after_rewrite(self, number: int, opened: str, closed: str) -> int:
        """Returns the start of a turn whose reply changes what the template writes before it (gpt-oss); -1 if not found."""
        written = [message.as_dict(self.form) for message in self.messages[:number]]
        probe = Message(number, "assistant", "sadprobereply").as_dict(self.form)
        other = render(self.tokenizer, [*written, probe], self.tools, **self.variables)
        header = opened[common_prefix(self.render(number), opened) :]
        at = closed.rfind(header, 0, common_prefix(closed, other) + len(header)) if header.strip() else -1
        return at + len(header) if at >= 0 else -1

    def _common_end(self, closed: str, text: str) -> int:
        """Returns the length of the common prefix, not inside of a special token."""
        stop = common_prefix(closed, text)
        for within in (closed, text) if self.specials else ():
            for match in self.specials.finditer(within, max(0, stop - 64), stop + 64):
                if match.start() < stop < match.end():
                    stop = match.start()
        return stop

    def _only_marks(self, rest: str) -> bool:
        return not (self.specials.sub("", rest) if self.specials else rest).strip()

    def _two_marks(self, turn: str) -> bool:
        if self.specials is None:
            return False
        kept = turn.rstrip()
        found = list(self.specials.finditer(turn, max(0, len(kept) - 130)))
        return len(found) > 1 and found[-1].end() == len(kept) and not turn[found[-2].end() : found[-1].start()].strip()

    def _find_without_empty_thought(self, text: str, number: int, start: int, after: int) -> tuple[int, int, bool]:
        """Finds a turn before which the template writes an empty thought only while it is the last one.

        Returns:
            Start, end without the end mark, and whether the template writes an end mark; (-1, -1, False) if not found.
        """
        closed, before = self.render(number + 1), self.render(number) if number else ""
        whole = closed[start:].rstrip()
        body = whole
        while self.specials and (marks := list(self.specials.finditer(body, max(0, len(body) - 64)))):
            if marks[-1].end() != len(body):
                break
            body = body[: marks[-1].start()].rstrip()
        header = closed[min(start, common_prefix(before, closed)) : start]
        empty = _EMPTY_THOUGHT.match(body)
        at = text.find(header, after) if empty else -1
        if at < 0:
            return -1, -1, False
        begin = at + len(header)
        body = body[empty.end() :]
        content = len(text[begin : begin + 16]) - len(text[begin : begin + 16].lstrip()) + begin
        if not text.startswith(body, content):
            return -1, -1, False
        return begin, content + len(body), body != whole[-len(body) :] if body else True

    def _end(self, text: str, start: int, stop: int, marked: bool) -> int:
        """Returns the end of the turn: after its end mark, or after its line if the template writes no mark.

        Args:
            text: The rendered text.
            start: Start of the turn.
            stop: End of what is known of the turn.
            marked: Whether a mark follows, perhaps another than the template writes after the last turn.
        """
        kept = start + len(text[start:stop].rstrip())
        if self.specials is not None:
            last = [match.end() for match in self.specials.finditer(text, max(start, kept - 64), kept)]
            if last and last[-1] == kept:
                return kept
            blanks = kept + len(text[kept : kept + 16]) - len(text[kept : kept + 16].lstrip())
            follows = self.specials.match(text, blanks)
            if follows and (marked or follows[0] == self.tokenizer.eos_token):
                return follows.end()
        return _REST_OF_LINE.match(text, kept).end()


def template_variables(tokenizer: PreTrainedTokenizerBase, variables: Any) -> dict[str, Any]:
    """Returns the variables of a chat template that a trajectory states. Null values count as absent.

    Raises:
        InputError: They are no object, or have the name of an argument of `apply_chat_template`.
    """
    if variables is None:
        return {}
    remedy = 'Write variables of the template, such as {"enable_thinking": false}.'
    if not isinstance(variables, dict):
        raise InputError("chat_template_kwargs", "an object", shown(variables), remedy)
    arguments = {"messages", "tokenizer", *inspect.signature(tokenizer.apply_chat_template).parameters} - {"documents"}
    if wrong := sorted(arguments & variables.keys()):
        expected = "variables of the template, not arguments of its renderer"
        raise InputError("chat_template_kwargs", expected, ", ".join(wrong), remedy)
    return {key: value for key, value in variables.items() if value is not None}


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: Any, **options: Any) -> str:
    """Renders messages that are already in the form of a template. transformers renders it in a sandbox.

    Raises:
        InputError: There is no chat template, it rejects the messages, takes too long, or writes too much.
    """
    if not getattr(tokenizer, "chat_template", None):
        remedy = "Set tokenizer.chat_template, or render the messages yourself and pass text."
        raise InputError("tokenizer", "a tokenizer with a chat template", "one without", remedy)
    try:
        with time_limit(_TEMPLATE_SECONDS):
            rendered = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
    except TookTooLongError:
        got = f"one that needs more than {_TEMPLATE_SECONDS} s"
        raise InputError("tokenizer", "a chat template that ends", got, "Replace it: --chat-template.") from None
    except Exception as error:  # a template can raise any exception: jinja2's errors, KeyError, TypeError
        remedy = "Check the roles, their order, and that the template knows the messages' keys."
        got = f"{type(error).__name__}: {error}"
        raise InputError("messages", "messages that the tokenizer's chat template accepts", got, remedy) from error
    if len(rendered) > _TEMPLATE_CHARACTERS:
        got = f"{len(rendered)} characters"
        expected = f"at most {_TEMPLATE_CHARACTERS} characters from the chat template"
        raise InputError("tokenizer", expected, got, "Replace the template: --chat-template.")
    return rendered
