"""The `Trajectory` class, and JSON Lines files with one trajectory per line."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sad.errors import InputError
from sad.files import atomic_file
from sad.trajectories.dialects import find_dialect
from sad.trajectories.formats import ChatFormat, Format, get_format
from sad.trajectories.json_values import first_of
from sad.trajectories.kept import KeptTokens, read_kept
from sad.trajectories.messages import check_messages, shown
from sad.trajectories.segment import Segmentation, Unparsed, segment
from sad.trajectories.spans import Span, SpanKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Trajectory:
    """The transcript of one episode: what the agent and the environment wrote.

    Args:
        id: Identifies the trajectory in error messages.
        text: The whole transcript. A trajectory has `text` or `messages`.
        messages: A conversation (dicts with role and content) for a chat format.
        format: The format of the transcript, a name in `sad.formats()`. None means "chat" for a trajectory that has only
            messages and for text with the marks of a chat template, and "sad" otherwise.
        spans: Reasoning and action spans in `text`, and observations (`Span.OBSERVE`). They replace the format.
        env: The name of the environment.
        task: The task of the episode.
        success: Whether the agent solved the task.
        prompt_chars: Number of characters at the start of `text` that are a prompt. Nothing in it is labelled.
        kept_tokens: The token ids that a model read and wrote when the trajectory was played, with their kinds.
        extra: All other keys of the trajectory's line in a file.
        where: The file and line that it was read from, for messages. Not part of the record.
        ranked: Whether it was read from a pair of a chosen and a rejected answer. Not part of the record.
    """

    id: str = ""
    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    format: str | None = None
    spans: list[Span] | None = None
    env: str | None = None
    task: str | None = None
    success: bool | None = None
    prompt_chars: int | None = None
    kept_tokens: KeptTokens | None = field(default=None, repr=False)
    extra: dict[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False, repr=False)
    ranked: bool = field(default=False, compare=False, repr=False)

    def resolve_format(self, format: str | Format | ChatFormat | None = None) -> Format | ChatFormat:
        """Returns `format`, else the trajectory's own format, else the default.

        Raises:
            InputError: The format is not registered.
        """
        chat = find_dialect(self.text) if isinstance(self.text, str) else self.messages is not None
        default = "chat" if chat else "sad"
        return get_format(format or self.format or default, f"format of trajectory {self.id!r}")

    def segmented(
        self,
        format: str | Format | ChatFormat | None = None,
        include_prefix: bool = True,
        tokenizer: PreTrainedTokenizerBase | None = None,
        unroll: str = "auto",
    ) -> Segmentation:
        """Returns the text and its spans: the trajectory's own spans if it has them, else those of `sad.segment`.

        Args:
            format: Replaces the trajectory's own format.
            include_prefix: As in `sad.segment`. Own spans are returned unchanged.
            tokenizer: The tokenizer whose chat template renders messages; `extra["tools"]` and the
                variables in `extra["chat_template_kwargs"]` are passed to the template.
            unroll: As in `sad.segment`.

        Raises:
            InputError: As in `sad.segment`; the message names the trajectory.
        """
        if self.spans is not None and self.text is not None:
            own = _checked_spans(self.spans, self.text, f"trajectory {self.id!r}")
            observations = [span for span in own if span.kind is SpanKind.OBSERVE]
            return Segmentation(self.text, [span for span in own if span.kind is not SpanKind.OBSERVE], [], observations)
        fmt = self.resolve_format(format)
        content = self.messages if isinstance(fmt, ChatFormat) and self.messages is not None else self.text
        instructions = _format_instructions(content) if isinstance(fmt, Format) and self.prompt_chars is None else 0
        try:
            found = segment(
                content,
                fmt,
                include_prefix=include_prefix,
                tokenizer=tokenizer,
                tools=first_of(self.extra, "tools", "functions"),
                prompt_chars=self.prompt_chars or instructions,
                unroll=unroll,
                template_variables=self.extra.get("chat_template_kwargs"),
            )
        except InputError as error:
            where = f"trajectory {self.id!r}, {error.where}"
            raise InputError(where, error.expected, error.got, error.remedy) from error
        if instructions:
            line = content.count("\n", 0, instructions)
            reason = "the format instructions up to here are taken for a prompt: not labelled (prompt_chars: 0 labels them)"
            found.unparsed.insert(0, Unparsed(max(line, 1), "Begin!", reason))
        return found


_INSTRUCTIONS, _BEGIN, _INSTRUCTIONS_LENGTH = "the following format", "\nBegin!", 8000


def _format_instructions(text: Any) -> int:
    """Returns the number of characters of a ReAct prompt ("Use the following format: ... Begin!") that opens a text.

    Its lines look like the model's (`Thought: you should always think about what to do`).
    """
    start = text.find(_INSTRUCTIONS, 0, _INSTRUCTIONS_LENGTH) if isinstance(text, str) else -1
    begin = text.find(_BEGIN, start, start + _INSTRUCTIONS_LENGTH) if start >= 0 else -1
    return text.find("\n", begin + 1) + 1 or len(text) if begin >= 0 else 0


FIELDS = tuple(item.name for item in fields(Trajectory) if item.name not in ("extra", "where", "ranked"))
_TYPES = {"text": (str, "a string"), "format": (str, "a string"), "env": (str, "a string"), "task": (str, "a string")}
_TYPES["success"] = (bool, "true or false")


def _checked_spans(spans: Any, text: str, where: str) -> list[Span]:
    """Returns the spans sorted; raises if one is outside the text or overlaps. Kinds may be ids or names."""
    names = {kind.name.lower(): kind for kind in SpanKind}
    remedy = 'Write [[0, 12, "reason"], [12, 30, "act"]], character ranges that do not overlap.'
    try:
        read = sorted(Span(int(b), int(e), names[k] if isinstance(k, str) else SpanKind(k)) for b, e, k in spans)
    except (KeyError, OverflowError, TypeError, ValueError):
        raise InputError(f"{where}, spans", "a list of [start, end, kind]", shown(spans), remedy) from None
    previous = 0
    for span in read:
        if not previous <= span.start <= span.end <= len(text):
            got = f"{list(span[:2])} after a span that ends at {previous}, in a text of {len(text)} characters"
            raise InputError(f"{where}, spans", "ranges in the text that do not overlap", got, remedy)
        previous = span.end
    return read


def from_record(record: Any, where: str = "record", *, check: bool = True) -> Trajectory:
    """Returns the trajectory of a JSON object: its keys are the fields, all other keys go to `extra`.

    Args:
        record: The object. It is not changed.
        where: Its location for error messages.
        check: Whether to check that there are messages or text.

    Raises:
        InputError: A field has the wrong type, or the object has neither messages nor text.
    """
    if not isinstance(record, dict):
        raise InputError(where, "a JSON object", type(record).__name__, "Write one trajectory as one object per line.")
    extra = {key: value for key, value in record.items() if key not in FIELDS}
    known = {key: record[key] for key in FIELDS if record.get(key) is not None}
    for key, (kind, name) in _TYPES.items():
        if key in known and not isinstance(known[key], kind):
            raise InputError(f"{where}, key {key!r}", name, shown(known[key]), "Fix the value or rename the key.")
    known["id"] = str(known.get("id", ""))
    if "messages" in known:
        try:
            check_messages(known["messages"])
        except InputError as error:
            raise InputError(f"{where}, {error.where}", error.expected, error.got, error.remedy) from None
    elif "text" not in known and check:
        got = f"an object with {', '.join(map(repr, extra))[:300] or 'no keys'}"
        remedy = "Rename the key that holds the transcript, or name the source (see `sad.sources()`)."
        raise InputError(where, "a trajectory with 'text' or 'messages'", got, remedy)
    try:
        known.get("text", "").encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}, key 'text'", "valid Unicode", str(error), "Remove the lone surrogate.") from None
    chars = known.get("prompt_chars", 0)
    if isinstance(chars, bool) or not isinstance(chars, int) or not 0 <= chars <= len(known.get("text", "")):
        got = f"{shown(chars)} of a text of {len(known.get('text', ''))} characters"
        remedy = "Count the characters of the prompt at the start of the text."
        raise InputError(f"{where}, key 'prompt_chars'", "a number of characters of the text", got, remedy)
    if "spans" in known:
        known["spans"] = _checked_spans(known["spans"], known.get("text", ""), where)
    if "kept_tokens" in known:
        known["kept_tokens"] = read_kept(known["kept_tokens"], f"{where}, kept_tokens")
    return Trajectory(**known, extra=extra)


def _record(trajectory: Trajectory) -> dict[str, Any]:
    """Returns the JSON object of a trajectory: the fields that are not None, then the extra keys."""
    record = {key: getattr(trajectory, key) for key in FIELDS if getattr(trajectory, key) is not None}
    if trajectory.spans is not None:
        record["spans"] = [[start, end, SpanKind(kind).name.lower()] for start, end, kind in trajectory.spans]
    if trajectory.kept_tokens is not None:
        record["kept_tokens"] = trajectory.kept_tokens.as_record()
    return record | {key: value for key, value in trajectory.extra.items() if key not in FIELDS}


def json_line(trajectory: Trajectory) -> bytes:
    """Returns a trajectory as one line of a JSON Lines file, with its line terminator.

    Raises:
        InputError: The trajectory contains a value that JSON cannot store.
    """
    try:
        return (json.dumps(_record(trajectory), ensure_ascii=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        where = f"trajectory {trajectory.id!r}"
        raise InputError(where, "values that JSON can store", str(error), "Convert or drop them.") from error


def write_jsonl(path: str | os.PathLike[str], trajectories: Iterable[Trajectory], *, overwrite: bool = False) -> int:
    """Writes trajectories to a JSON Lines file, one object per line. Writes the complete file or nothing.

    Args:
        path: The file; a name that ends in `.gz` is compressed. A missing folder is created.
        trajectories: The trajectories. A line contains the fields that are not None and the keys of `extra`.
        overwrite: Whether to replace an existing file.

    Returns:
        The number of trajectories written.

    Raises:
        InputError: The file exists, or a trajectory contains a value that JSON cannot store.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(str(path), "a new file", "an existing one", "Choose another name, or pass overwrite=True.")
    count = 0
    zipped = path.suffix == ".gz"
    with atomic_file(path, overwrite=overwrite) as raw, _compressed(raw) if zipped else nullcontext(raw) as file:
        for trajectory in trajectories:
            file.write(json_line(trajectory))
            count += 1
    return count


def _compressed(raw: Any) -> gzip.GzipFile:
    return gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0)  # no time stamp: equal content gives equal bytes
