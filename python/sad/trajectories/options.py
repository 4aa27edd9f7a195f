"""The options of all commands that encode trajectories: declared and checked in one place. Imports nothing large."""

from __future__ import annotations

from numbers import Real
from typing import Any

from sad.errors import InputError
from sad.options import option

LONG = ("truncate", "window", "turns")
UNROLL = ("auto", "never", "always")
KEPT_IDS = ("auto", "always", "never")
ON_ERROR = ("stop", "skip")

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
ENCODING_OPTIONS = tuple(_OPTIONS)  # the names that the options of every such command have


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


def check_on_error(on_error: str) -> None:
    """Checks the option.

    Raises:
        InputError: It is neither "stop" nor "skip".
    """
    if on_error not in ON_ERROR:
        raise InputError("on_error", "stop or skip", repr(on_error), "Choose one of these.")


def check_long(long: str, max_length: int | None, context: float, head: int) -> None:
    """Checks the options for long trajectories.

    Raises:
        InputError: A value is out of range, or the context and the head leave no room in `max_length`.
    """
    if max_length is not None and max_length < 1:
        raise InputError("max_length", "at least 1", str(max_length), "Pass the model's sequence length, or None.")
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


def encoding_option(name: str, group: str | None = None, flag: str | None = None, **changed: Any) -> Any:
    """Declares an option of a command: one of `ENCODING_OPTIONS`.

    Args:
        name: The name of the option.
        group: As in `sad.options.option`.
        flag: As in `sad.options.option`.
        changed: Arguments of `sad.options.option` that differ in this command, such as `default`.
    """
    return option(**_OPTIONS[name] | changed, group=group, flag=flag)


def check_encoding(options: Any, max_length: int | None) -> None:
    """Checks the values of all encoding options of a command, without touching any file.

    Args:
        options: The options of the command. They have all names of `ENCODING_OPTIONS`.
        max_length: Maximum number of tokens per example; None if it is not known yet.

    Raises:
        InputError: A value is out of range, or options contradict each other.
    """
    missing = [name for name in ENCODING_OPTIONS if not hasattr(options, name)]
    if missing:
        raise TypeError(f"{type(options).__name__} lacks the encoding options {', '.join(missing)}")
    check_long(options.long, max_length, options.long_context, options.long_head)
    check_unroll(options.unroll)
    check_kept_ids(options.kept_ids)
    check_on_error(options.on_error)
