"""Text formats of agent trajectories: data that says which line prefixes start a thought, an action or an observation."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sad.errors import InputError


@dataclass(frozen=True)
class Format:
    """Line prefixes that tell what the model wrote and what the environment wrote.

    Each pattern is a regular expression. The segmenter matches it at the first non-blank character of every line, in the
    order `environment`, `reason`, `act`. A pattern matches the prefix (`Action:`) and not the text after it.

    A pattern may contain a group named `label` that captures the optional part of a prefix, such as the number in
    `Action 3:`. If the prefix of an observation has its label, only a labelled prefix ends that observation.

    Args:
        name: The name that `format=` refers to.
        reason: Prefix of a thought.
        act: Prefix of an action.
        environment: Prefix of an observation, a question or a note. None if the format does not mark them.
        context: Start of a line that the environment wrote and that is not an observation, such as a question or the task.
            None if all lines of the environment after the model's first span are observations.
        unprefixed: Who wrote the lines without a prefix.
            "environment": always the environment.
            "thought": the environment, but a thought continues up to the prefix of its action.
            "model": the author of the line before. Use it if the format marks every observation. An action continues
            only if the prefix of an observation ends it.
        inline: Whether a prefix may stand anywhere in a line.
        ignore_case: Whether the patterns ignore case.
        suspect: Pattern of unprefixed lines that look like a prefix of another format. They are reported as unparsed.

    Raises:
        InputError: A pattern is not a regular expression or matches the empty string, or `unprefixed` is unknown.
    """

    name: str
    reason: str
    act: str
    environment: str | None = None
    unprefixed: Literal["environment", "thought", "model"] = "environment"
    inline: bool = False
    ignore_case: bool = True
    suspect: str | None = None
    context: str | None = None
    patterns: dict[str, re.Pattern[str]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.unprefixed not in ("environment", "thought", "model"):
            remedy = "Set it to the author of lines without a prefix."
            raise InputError("Format.unprefixed", "'environment', 'thought' or 'model'", repr(self.unprefixed), remedy)
        for key in ("environment", "context", "reason", "act", "suspect"):
            source = getattr(self, key)
            if source is None and key in ("environment", "context", "suspect"):
                continue
            where = f"Format({self.name!r}).{key}"
            try:
                pattern = re.compile(source, re.IGNORECASE if self.ignore_case else 0)
            except (re.error, TypeError) as error:
                raise InputError(where, "a regular expression", f"{source!r} ({error})", "Fix the pattern.") from None
            if pattern.match(""):
                remedy = "Make the pattern match at least one character; this one matches every line."
                raise InputError(where, "a pattern that does not match the empty string", repr(source), remedy)
            self.patterns[key] = pattern
        if (pattern := _any_of(self)) is not None:
            self.patterns["any"] = pattern


def _any_of(fmt: Format) -> re.Pattern[str] | None:
    """Returns a pattern that matches wherever one of the prefixes does, to pass over other lines fast; None for none."""
    return joined_patterns([fmt.patterns[key] for key in ("environment", "reason", "act") if key in fmt.patterns])


def joined_patterns(patterns: Sequence[re.Pattern[str]]) -> re.Pattern[str] | None:
    """Returns one pattern that matches as the first of several that matches: `lastgroup` is "p" and the index of that one.

    None if they cannot be joined, because they refer to groups by number or name, or set flags.
    """
    parts = []
    for number, pattern in enumerate(patterns):
        if re.search(r"\\[1-9]|\(\?(?:P=|\(|[aiLmsux-]+[):])", pattern.pattern):
            return None
        source = re.sub(r"[(][?]P<label>", "(?:", pattern.pattern)
        parts.append(f"(?P<p{number}>{f'(?i:{source})' if pattern.flags & re.IGNORECASE else source})")
    try:
        return re.compile("|".join(parts))
    except re.error:  # such as another group name in two patterns
        return None


@dataclass(frozen=True)
class ChatFormat:
    """Messages that a tokenizer's chat template renders. The segmenter finds the assistant's parts in the rendered text.

    Args:
        name: The name that `format=` refers to.
        reasoning_keys: Keys of a message that hold its reasoning outside the content.
        think_tags: Pairs of tags that enclose reasoning, in the content of a message and in the rendered text.
        call_openers: Strings that templates write before tool calls.
        text_formats: Names of the line formats for visible text that begins with one of their prefixes; the first match
            is used. Other visible text is reasoning if tool calls follow in the same message, and an action otherwise.
        environment_tags: Names of paired tags in an assistant message that enclose what the environment inserted.
        reason_tags: Names of paired tags that enclose a thought.
        action_tags: Names of paired tags that enclose an action.
        text_tags: Names of paired tags that are ordinary text, such as HTML. Any other pair is reported.
    """

    name: str
    reasoning_keys: tuple[str, ...] = ("reasoning_content", "reasoning", "thinking")
    think_tags: tuple[tuple[str, str], ...] = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
    call_openers: tuple[str, ...] = (
        *("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<function_call>", "<tool_calls>", "<|tool_call>"),
        *("<|tool_call_start|>", "<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
        *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    )
    text_formats: tuple[str, ...] = ("sad", "react")
    environment_tags: tuple[str, ...] = (
        *("information", "result", "interpreter", "tool_response", "tool_result", "observation", "tool_output"),
        *("search_result", "search_results", "execution_result", "function_results"),
    )
    reason_tags: tuple[str, ...] = (
        *("thought", "thoughts", "thinking", "reasoning", "reason", "plan", "analysis", "reflection", "scratchpad"),
        *("rationale", "inner_monologue"),
    )
    action_tags: tuple[str, ...] = (
        *("action", "answer", "code", "search", "tool_call", "tool_calls", "function", "function_call", "function_calls"),
        *("execute_bash", "execute_ipython", "execute_browse", "python", "bash", "tool", "invoke", "command", "finish"),
        *("query", "use_mcp_tool", "tool_use", "final_answer", "click", "solution"),
    )
    text_tags: tuple[str, ...] = (
        *("a", "b", "i", "u", "s", "p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "div", "span", "table", "tr"),
        *("td", "th", "thead", "tbody", "html", "head", "body", "title", "script", "style", "pre", "em", "strong", "br"),
        *("details", "summary", "blockquote", "section", "header", "footer", "nav", "main", "form", "label", "button"),
        *("svg", "img", "sub", "sup", "kbd", "del", "dl", "dt", "dd", "article", "select", "option", "textarea", "template"),
    )


_FORMATS: dict[str, Format | ChatFormat] = {}


def register_format(new: Format | ChatFormat, *, replace: bool = False) -> None:
    """Registers a format under its name for this process, for `sad.segment`, `sad.encode` and `Trajectory.format`.

    Args:
        new: The format.
        replace: Whether to replace a registered format of the same name.

    Raises:
        InputError: The name is empty, or it is registered and `replace` is False.
    """
    if not new.name or (new.name in _FORMATS and not replace):
        remedy = "Choose another name, or pass replace=True."
        raise InputError("format.name", "a name not yet taken", repr(new.name), remedy)
    _FORMATS[new.name] = new


def formats() -> dict[str, Format | ChatFormat]:
    """Returns all registered formats by name."""
    return dict(_FORMATS)


def load_format(path: str | os.PathLike[str]) -> Format | ChatFormat:
    """Reads a format from a YAML file with the fields of `sad.Format`, or of `sad.ChatFormat`.

    The name is that of the file unless the file has a `name`. A file with `reason` or `act` is a `Format`.

    Raises:
        InputError: The file cannot be read, or a field is unknown, missing or of the wrong type.
    """
    import yaml

    where = str(path)
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(where, "a YAML file with the fields of sad.Format", str(error), "Check the file.") from None
    if not isinstance(content, dict) or not content:
        got = "nothing" if content is None else type(content).__name__
        raise InputError(where, "`field: value` lines", got, "Write for example `reason: 'Plan:'` and `act: 'Do:'`.")
    kind = Format if {"reason", "act"} & content.keys() else ChatFormat
    hints = get_type_hints(kind)
    known = {item.name: item for item in fields(kind) if item.init}
    values: dict[str, Any] = {"name": Path(path).stem}
    for key, value in content.items():
        if key not in known:
            remedy = f"See help(sad.{kind.__name__})."
            raise InputError(f"{where}, {key}", f"one of {', '.join(known)}", repr(key), remedy)
        values[key] = _field_value(value, hints[key], f"{where}, {key}")
    missing = [name for name in ("reason", "act") if kind is Format and name not in values]
    if missing:
        raise InputError(where, "the fields reason and act", f"no {missing[0]}", "Add it: a regular expression.")
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{where}, {error.where}", error.expected, error.got, error.remedy) from None


def _field_value(value: Any, hint: Any, where: str) -> Any:
    """Returns a value of a YAML file as the type of its field: strings, booleans, and tuples of strings or of pairs."""
    if get_origin(hint) is tuple:
        [item, _] = get_args(hint)
        if not isinstance(value, list):
            raise InputError(where, "a list", repr(value), "Write `[a, b]`.")
        if item is str:
            return tuple(_field_value(element, str, where) for element in value)
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
            raise InputError(where, "a list of pairs", repr(value), "Write `[['<think>', '</think>']]`.")
        return tuple((_field_value(a, str, where), _field_value(b, str, where)) for a, b in value)
    accepted = bool if hint is bool else (str, type(None)) if type(None) in get_args(hint) else str
    if not isinstance(value, accepted):
        expected = "true or false" if hint is bool else "a string"
        raise InputError(where, expected, repr(value), "Fix the value; put a string in quotes.")
    return value


def resolve_format(name: str | None) -> Format | ChatFormat | None:
    """Returns the format that `--format` names: a registered format, or a YAML file. None stays None.

    Raises:
        InputError: It is neither.
    """
    if name is None or name in _FORMATS:
        return None if name is None else _FORMATS[name]
    if name.endswith((".yaml", ".yml")):
        return load_format(name)
    known = ", ".join(sorted(_FORMATS))
    raise InputError("--format", f"one of {known}, or a .yaml file", repr(name), "Use one of these, or write a file.")


def get_format(name: str | Format | ChatFormat, where: str = "format") -> Format | ChatFormat:
    """Returns the format of a name; returns a format unchanged.

    Args:
        name: The name of a registered format, or a format.
        where: The argument that the error message names.

    Raises:
        InputError: The name is not registered. The message lists the registered names.
    """
    if isinstance(name, (Format, ChatFormat)):
        return name
    if name not in _FORMATS:
        known = ", ".join(sorted(_FORMATS))
        remedy = "Use one of these (--format replaces the trajectories' own), or add yours with sad.register_format."
        raise InputError(where, f"one of {known}", repr(name), remedy)
    return _FORMATS[name]


for _format in (
    # Table 6 of the paper. Observations have no prefix.
    Format(
        "sad",
        reason=r"Reasoning[ \t]?:",
        act=r"(?:Action|Answer)[ \t]?:",
        environment=r"Observation[ \t]?:",
        unprefixed="thought",
        suspect=r"(?:Thought|Think|Act)(?:[ \t]?\d+)?[ \t]?:|>[ \t]?think:",
        context=r"Your task is to\b",
    ),
    # ReAct with a prefix on every observation, numbered or not. KnowAgent's `ActionPath` lists the actions so far.
    Format(
        "react",
        reason=r"(?:Thought|Think)(?P<label>[ \t]?\d+)?[ \t]?:",
        act=r"(?:Action Input|Action|Act|Final Answer|Answer)(?P<label>[ \t]?\d+)?[ \t]?:",
        environment=r"(?:Observation|ActionPath|Question)(?P<label>[ \t]?\d+)?[ \t]?:",
        unprefixed="model",
        suspect=r"Reasoning[ \t]?:|>[ \t]?think:",
        context=r"(?:ActionPath|Question)(?:[ \t]?\d+)?[ \t]?:",
    ),
    # ReAct on ALFWorld: the model writes after the prompt sign, the environment writes all other lines.
    Format(
        "alfworld",
        reason=r">[ \t]*think[ \t]?:",
        act=r">",
        environment=r">[ \t]*ActionPath\b",
        suspect=r"(?:think|Thought|Action|Reasoning)[ \t]?:",
        context=r">[ \t]*ActionPath\b|Your task is to\b",
    ),
    # ReAct on WebShop: a thought is an action named think. The harness, not the model, writes `Action: reset` to open an
    # episode. Other lines that begin with `Action:` are reported and not labelled, because product texts contain them.
    Format(
        "webshop",
        reason=r"(?P<label>Action:[ \t]*)?(?=think\[)",
        act=r"(?P<label>Action:[ \t]*)(?=\w+\[)|(?=(?:search|click)\[)",
        environment=r"(?P<label>Observation:)|Action:[ \t]*reset[ \t]*(?=[\r\n]|$)",
        suspect=r"Action:",
        context=r"Action:[ \t]*reset\b",
    ),
    # Equation 3 of the paper: a marker before each part, on one line or on many.
    Format(
        "markers",
        reason=r"\[REASON\]",
        act=r"\[ACT\]",
        environment=r"\[(?:OBS|OBSERVATION)\]",
        unprefixed="thought",
        inline=True,
    ),
    ChatFormat("chat"),
):
    register_format(_format)
