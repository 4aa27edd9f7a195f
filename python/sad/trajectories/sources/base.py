"""Sources of trajectories: which program wrote a record, and how it maps to a `Trajectory`."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from sad.errors import InputError
from sad.trajectories.messages import check_messages, shown
from sad.trajectories.trajectory import FIELDS, Trajectory, from_record


@dataclass(frozen=True)
class Source:
    """A program or API whose logs can be read.

    Args:
        name: The name that `source=` and `--source` refer to.
        title: What one file holds, in the plural, for messages: "ShareGPT conversations".
        matches: Returns whether a JSON value looks like a record of this source. Called with any JSON value.
        read: Returns the trajectory, or the list of trajectories, of one record. It may raise `sad.InputError`; a
            `Trajectory` without an id gets one from the file.
        group: None if each record is a trajectory. Otherwise a record is an event or a message, and the records of a file
            with the same key make one trajectory; `read` then receives the list of records.
    """

    name: str
    title: str
    matches: Callable[[Any], bool]
    read: Callable[[Any], Trajectory | list[Trajectory]]
    group: Callable[[Any], Hashable] | None = None


_SOURCES: dict[str, Source] = {}


def register_source(source: Source, *, replace: bool = False) -> None:
    """Registers a source for this process. Sources that are registered later are tried first.

    Args:
        source: The source.
        replace: Whether to replace a registered source of the same name.

    Raises:
        InputError: The name is empty, "auto", or registered and `replace` is False.
    """
    if not source.name or source.name == "auto" or (source.name in _SOURCES and not replace):
        remedy = "Choose another name, or pass replace=True."
        raise InputError("source.name", "a name not yet taken", repr(source.name), remedy)
    _SOURCES.pop(source.name, None)
    _SOURCES[source.name] = source


def sources() -> dict[str, Source]:
    """Returns all registered sources by name."""
    return dict(_SOURCES)


def get_source(name: str | Source) -> Source:
    """Returns the source of a name; returns a source unchanged.

    Raises:
        InputError: The name is not registered. The message lists the registered names.
    """
    if isinstance(name, Source):
        return name
    if name not in _SOURCES:
        known = ", ".join(["auto", *sorted(_SOURCES)])
        raise InputError("source", f"one of {known}", repr(name), "Use one of these, or add yours with sad.register_source.")
    return _SOURCES[name]


def recognize(record: Any, only: Source | None = None) -> Source | None:
    """Returns the source that a record looks like, among all or `only` one; None if it looks like none."""
    tried = reversed(_SOURCES.values()) if only is None else [only]
    return next((source for source in tried if _matches(source, record)), None)


def _matches(source: Source, record: Any) -> bool:
    try:
        return bool(source.matches(record))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # a user's test that expects an object
        return False


def is_dict_list(value: Any) -> bool:
    """Returns whether a value is a list of objects with at least one of them."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def has(record: Any, *keys: str) -> bool:
    """Returns whether a value is an object with all the keys."""
    return isinstance(record, dict) and all(key in record for key in keys)


def refuse_undesired(record: dict[str, Any], *keys: str) -> None:
    """Refuses a row that its file marks as a bad example (KTO).

    Raises:
        InputError: One of the keys is false.
    """
    for key in keys:
        if record.get(key) is False:
            remedy = "Remove such rows, or pass --on-error skip: a student would learn the bad answer."
            raise InputError(key, "true, a desired answer", "false", remedy)


_RANKINGS = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
_BESIDE = ("rejected_response", "rejected_messages")  # beside the answer that is trained


def is_ranking(record: Any) -> bool:
    """Returns whether a record holds a chosen and a rejected answer."""
    if not isinstance(record, dict):
        return False
    pair = any(all(record.get(key) for key in keys) for keys in _RANKINGS)
    return pair or any(record.get(key) for key in _BESIDE)


def with_chosen(messages: list[dict[str, Any]], record: dict[str, Any], *keys: str) -> list[dict[str, Any]]:
    """Returns the messages with the chosen answer of a ranking, if the record holds it beside them.

    Args:
        messages: The conversation up to the answer.
        record: The record. Its `chosen` is a message, a list of messages, or the whole conversation again.
        keys: The key of the role in a message. Default: `role`.
    """
    chosen = record.get("chosen")
    answer = [chosen] if isinstance(chosen, dict) else chosen
    if not is_dict_list(answer) or not any(key in answer[0] for key in keys or ("role",)):
        return messages
    return answer if answer[: len(messages)] == messages else [*messages, *answer]


def conversation(messages: list[dict[str, Any]], record: dict[str, Any], *used: str, **fields: Any) -> Trajectory:
    """Returns the trajectory of messages; the record's other keys go to `extra`.

    Args:
        messages: Messages with a role, as the source has them.
        record: The whole record.
        used: Keys of the record that the messages contain already.
        fields: Fields of the trajectory and of `extra` that replace those of the record.
    """
    check_messages(messages)
    kept = {key: value for key, value in record.items() if key not in used and key not in FIELDS and value is not None}
    own = {key: value for key, value in record.items() if key in ("id", "env", "task", "success") and key not in used}
    extra = {**kept, **{key: value for key, value in fields.items() if key not in FIELDS and value is not None}}
    known = {**own, **{key: value for key, value in fields.items() if key in FIELDS}}
    return from_record({**extra, **known, "messages": messages}, check=False)


def with_system(messages: list[dict[str, Any]], system: Any) -> list[dict[str, Any]]:
    """Returns the messages after a system message, unless they begin with one or there is none."""
    first = messages[0].get("role") if messages and isinstance(messages[0], dict) else None
    if system in (None, "", []) or first in ("system", "developer"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def need(value: Any, kind: type | tuple[type, ...], where: str, expected: str) -> Any:
    """Returns the value if it has the type.

    Raises:
        InputError: It has another type.
    """
    if not isinstance(value, kind):
        raise InputError(where, expected, shown(value), "Fix the value, or name the source with source=.")
    return value


def text_or(value: Any, default: str = "") -> str:
    """Returns a value if it is a string."""
    return value if isinstance(value, str) else default


def grouped_in_file(record: Any) -> Hashable:
    """The key of a source whose file is one trajectory."""
    return "file"
