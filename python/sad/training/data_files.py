"""The files that `--data` and `--eval-data` name: paths, patterns and named sets."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from sad.errors import InputError


def expand_paths(name: str, patterns: Sequence[str]) -> list[str]:
    """Returns the files and folders that `patterns` name, `*` expanded in alphabetical order.

    Raises:
        InputError: A pattern matches nothing.
    """
    found: list[str] = []
    for pattern in patterns:
        matches = (
            sorted(glob.glob(pattern, recursive=True))
            if glob.has_magic(pattern) and not Path(pattern).exists()
            else [pattern]
        )
        if not matches:
            raise InputError(name, "a pattern that matches a file", repr(pattern), "Check the path.")
        found += matches
    return found


def evaluation_sets(values: Sequence[str]) -> dict[str, list[str]]:
    """Returns the files of each evaluation set: `eval_data`, or `eval_data_NAME` for every NAME of NAME=FILE.

    Raises:
        InputError: Some values have a name and others have none, or a pattern matches nothing.
    """
    pairs = [(value, None, value) if Path(value).exists() else (value, *_split_name(value)) for value in values]
    if len({label is None for _, label, _ in pairs}) > 1:
        unnamed = next(value for value, label, _ in pairs if label is None)
        raise InputError("eval_data", "a name for all sets or for none", f"no name for {unnamed!r}", "Write NAME=FILE.")
    sets: dict[str, list[str]] = {}
    for _, label, pattern in pairs:
        sets.setdefault("eval_data" if label is None else f"eval_data_{label}", []).extend(
            expand_paths("eval_data", [pattern])
        )
    return sets


def _split_name(value: str) -> tuple[str | None, str]:
    label, equals, path = value.partition("=")
    return (label, path) if equals and label.isidentifier() else (None, value)
