"""The text formats of agent trajectories, as data: which line prefixes mean a thought, an action, the environment."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from sad.errors import InputError


@dataclass(frozen=True)
class Format:
    """How to tell, line by line, who wrote what.

    Patterns are regular expressions tried at the first non-blank character of each line: `environment` first, then
    `reason`, then `act`. A pattern matches the prefix alone (`Action:`), not what follows it.

    A pattern may hold a group `label`, for prefixes that come plain or labelled (`Action:`, `Action 3:`): inside an
    observation whose own prefix had its label, only a labelled prefix ends the observation.

    Args:
        name: What `format=` refers to.
        reason: Prefix of a thought.
        act: Prefix of an action.
        environment: Prefix of what is neither: observations, questions, notes. None where nothing marks them.
        unprefixed: Who wrote lines without a prefix.
            "environment": never the model.
            "thought": the environment, except between a thought and its action, where the thought goes on.
            "model": whoever wrote the line before; for formats that mark every observation. An action goes on
            only if an observation's prefix ends it.
        inline: Prefixes count anywhere in a line.
        ignore_case: Whether `Think:` is `think:`.
        suspect: Unprefixed lines that look like this are reported as not parsed.
    """

    name: str
    reason: str
    act: str
    environment: str | None = None
    unprefixed: Literal["environment", "thought", "model"] = "environment"
    inline: bool = False
    ignore_case: bool = True
    suspect: str | None = None
    patterns: dict[str, re.Pattern[str]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.unprefixed not in ("environment", "thought", "model"):
            remedy = "It says who wrote lines without a prefix."
            raise InputError("Format.unprefixed", "'environment', 'thought' or 'model'", repr(self.unprefixed), remedy)
        for key in ("environment", "reason", "act", "suspect"):
            source = getattr(self, key)
            if source is None and key in ("environment", "suspect"):
                continue
            where = f"Format({self.name!r}).{key}"
            try:
                pattern = re.compile(source, re.IGNORECASE if self.ignore_case else 0)
            except (re.error, TypeError) as error:
                raise InputError(where, "a regular expression", f"{source!r} ({error})", "Mend the pattern.") from None
            if pattern.match(""):
                raise InputError(where, "a pattern that needs some text", repr(source), "It would match every line.")
            self.patterns[key] = pattern


@dataclass(frozen=True)
class ChatFormat:
    """Messages, rendered by a tokenizer's chat template; what the assistant wrote is found in the rendered text.

    Args:
        name: What `format=` refers to.
        reasoning_keys: Keys of a message that hold its reasoning, apart from its content.
        think_tags: Pairs that enclose reasoning, in a message's content and in what templates render.
        call_openers: What templates write before tool calls.
        text_formats: Formats that visible text is tried with, the first that finds something counts. Visible text in
            which none does is reasoning when tool calls follow in the same message, else the answer, an action.
    """

    name: str
    reasoning_keys: tuple[str, ...] = ("reasoning_content", "reasoning", "thinking")
    think_tags: tuple[tuple[str, str], ...] = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
    call_openers: tuple[str, ...] = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<function_call>", "<tool_calls>")
    text_formats: tuple[str, ...] = ("sad", "react")


_FORMATS: dict[str, Format | ChatFormat] = {}


def register_format(new: Format | ChatFormat, *, replace: bool = False) -> None:
    """Makes a format known by its name in this program: to `sad.segment`, `sad.encode` and `Trajectory.format`.

    Args:
        new: The format.
        replace: Allow a name that is taken.

    Raises:
        InputError: The name is taken or empty.
    """
    if not new.name or (new.name in _FORMATS and not replace):
        raise InputError("format.name", "a name not yet taken", repr(new.name), "Choose another, or pass replace=True.")
    _FORMATS[new.name] = new


def formats() -> dict[str, Format | ChatFormat]:
    """All known formats by name."""
    return dict(_FORMATS)


def get_format(name: str | Format | ChatFormat, where: str = "format") -> Format | ChatFormat:
    """The format of that name; a format itself is passed through.

    Raises:
        InputError: No such format; the message lists those there are.
    """
    if isinstance(name, (Format, ChatFormat)):
        return name
    if name not in _FORMATS:
        known = ", ".join(sorted(_FORMATS))
        remedy = "Name one of these, or add yours with sad.register_format."
        raise InputError(where, f"one of {known}", repr(name), remedy)
    return _FORMATS[name]


for _format in (
    # Table 6 of the paper. The environment's answers stand bare between the lines.
    Format(
        "sad",
        reason=r"Reasoning[ \t]?:",
        act=r"(?:Action|Answer)[ \t]?:",
        environment=r"Observation[ \t]?:",
        unprefixed="thought",
        suspect=r"(?:Thought|Think|Act)(?:[ \t]?\d+)?[ \t]?:|>[ \t]?think:",
    ),
    # ReAct with every observation marked, numbered or not; `ActionPath` is KnowAgent's note of the actions so far.
    Format(
        "react",
        reason=r"(?:Thought|Think)(?P<label>[ \t]?\d+)?[ \t]?:",
        act=r"(?:Action Input|Action|Final Answer|Answer)(?P<label>[ \t]?\d+)?[ \t]?:",
        environment=r"(?:Observation|ActionPath|Question)(?P<label>[ \t]?\d+)?[ \t]?:",
        unprefixed="model",
        suspect=r"Reasoning[ \t]?:|>[ \t]?think:",
    ),
    # ReAct's ALFWorld: what follows the prompt sign is the model's, every other line the environment's.
    Format(
        "alfworld",
        reason=r">[ \t]*think[ \t]?:",
        act=r">",
        environment=r">[ \t]*ActionPath\b",
        suspect=r"(?:think|Thought|Action|Reasoning)[ \t]?:",
    ),
    # ReAct's WebShop: thoughts are actions named think. `Action: reset` is the harness opening the episode, not the
    # model. An `Action:` in no such form is reported and not labelled: product texts hold lines like it.
    Format(
        "webshop",
        reason=r"(?P<label>Action:[ \t]*)?(?=think\[)",
        act=r"(?P<label>Action:[ \t]*)(?=\w+\[)|(?=(?:search|click)\[)",
        environment=r"(?P<label>Observation:)|Action:[ \t]*reset[ \t]*(?=[\r\n]|$)",
        suspect=r"Action:",
    ),
    # Equation 3: one line or many, a marker before each part.
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
