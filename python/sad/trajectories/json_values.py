"""Small helpers for JSON values of unknown form: absent values, the first key that is present, text that holds JSON."""

from __future__ import annotations

import json
from typing import Any

from sad.errors import InputError
from sad.trajectories.messages import shown


def absent(value: Any) -> bool:
    """Returns whether a value says nothing: null, or an empty list."""
    return value is None or (isinstance(value, (list, tuple)) and not value)


def first_of(record: dict[str, Any], *keys: str) -> Any:
    """Returns the value of the first key that is present and not null; None without one."""
    return next((record[key] for key in keys if record.get(key) is not None), None)


def parsed(text: Any) -> Any:
    """Returns the JSON value in a string; None for another string; any other value unchanged."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def to_json(value: Any, where: str) -> str:
    """Returns a value as JSON text."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(where, "a value that JSON can store", f"{shown(value)} ({error})", "Convert the value.") from None
