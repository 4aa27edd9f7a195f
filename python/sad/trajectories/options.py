"""The options of all commands that encode trajectories, declared once. This module imports nothing large."""

from __future__ import annotations

from numbers import Real
from typing import Any

from sad.errors import InputError
from sad.options import option

LONG = ("truncate", "window", "turns")
UNROLL = ("auto", "never", "always")
KEPT_IDS = ("auto", "always", "never")

_OPTIONS: dict[str, dict[str, Any]] = {
    "format": {
        "default": None,
        "help": "Format of the trajectories, such as alfworld, or a .yaml file with the fields of sad.Format. "
        "Default: each trajectory's own format.",
    },
    "source": {"default": "auto", "help": "Source of the files, such as sharegpt. Default: recognized by keys."},
    "long": {
        "default": "truncate",
        "help": "Trajectories above --max-length. truncate: cut the end off; window: overlapping windows that cover every "
        "supervised token once; turns: one example per turn with the history that fits.",
    },
    "long_context": {
        "default": 0.25,
        "help": "Least share of a window or turn that is context before its first label, from 0 to below 1.",
    },
    "long_head": {
        "default": 0,
        "help": "Tokens at the start of a long trajectory, such as the task, that every window repeats.",
    },
    "unroll": {
        "default": "auto",
        "help": "Conversations. auto: one example, or one per turn if the chat template drops earlier thoughts; "
        "always: one per turn; never: one, and turns without their thoughts have no loss.",
    },
    "kept_ids": {
        "default": "auto",
        "help": "Token ids that `sad collect` kept. auto: train on them without the prompt, and on the text of "
        "conversations; always: on all ids as played, with the prompt; never: on the text.",
    },
    "chat_template": {
        "default": None,
        "help": "File with a chat template that replaces the tokenizer's. Default: the tokenizer's own.",
    },
    "on_error": {
        "default": "stop",
        "help": "Trajectories that cannot be read or labelled. stop: refuse the run and name the first three; "
        "skip: leave them out and count them.",
    },
}


def check_unroll(unroll: str) -> None:
    """Checks the option.

    Raises:
        InputError: It is none of `UNROLL`.
    """
    if unroll not in UNROLL:
        raise InputError("unroll", "one of " + ", ".join(UNROLL), repr(unroll), "Choose one of these.")


def check_kept_ids(kept_ids: str) -> None:
    """Checks the option.

    Raises:
        InputError: It is none of `KEPT_IDS`.
    """
    if kept_ids not in KEPT_IDS:
        raise InputError("kept_ids", "one of " + ", ".join(KEPT_IDS), repr(kept_ids), "Choose one of these.")


def check_long(long: str, max_length: int | None, context: float, head: int) -> None:
    """Checks the options for long trajectories.

    Raises:
        InputError: A value is out of range, or the context and the head leave no room in `max_length`.
    """
    if long not in LONG:
        raise InputError("long", "one of " + ", ".join(LONG), repr(long), "Choose one of these.")
    if isinstance(context, bool) or not isinstance(context, Real) or not 0 <= context < 1:
        remedy = "0.25 keeps a quarter of each window as context."
        raise InputError("long_context", "a share of at least 0 and below 1", repr(context), remedy)
    if isinstance(head, bool) or not isinstance(head, int) or head < 0:
        raise InputError("long_head", "a number of tokens >= 0", repr(head), "0 repeats nothing.")
    if long == "truncate" or max_length is None:
        return
    taken = head + context_tokens(max_length, context)
    if taken >= max_length:
        expected = f"long_head and the context together below max_length {max_length}"
        remedy = "Lower long_head or long_context, or raise max_length."
        raise InputError("long_head", expected, f"{taken} tokens", remedy)


def context_tokens(max_length: int, context: float) -> int:
    """Returns the least number of context tokens of a window: its share, at least 1, since token 0 has no prediction."""
    return max(1, int(context * max_length))


def encoding_option(name: str, group: str | None = None, flag: str | None = None) -> Any:
    """Declares an option of a command: format, source, long, long_context, long_head, unroll, kept_ids, chat_template or
    on_error.

    Args:
        name: The name of the option.
        group: As in `sad.options.option`.
        flag: As in `sad.options.option`.
    """
    return option(**_OPTIONS[name], group=group, flag=flag)


def encoding_keywords(options: Any) -> dict[str, Any]:
    """Returns the keyword arguments of `sad.encode_all` that options with these names hold.

    Raises:
        InputError: The format is unknown.
    """
    from sad.trajectories.formats import resolve_format

    names = ("long", "long_context", "long_head", "unroll", "kept_ids")
    return {name: getattr(options, name) for name in names} | {"format": resolve_format(options.format)}
