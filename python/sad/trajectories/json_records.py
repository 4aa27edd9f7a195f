"""Reads the records of JSON Lines, and of files that are one JSON value or several."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.sources import recognize
from sad.trajectories.sources.base import is_dict_list


class Record(NamedTuple):
    """A JSON value, its location for messages, the id of a trajectory that has none, and why it cannot be read."""

    value: Any
    where: str
    id: str
    error: InputError | None = None


def json_records(lines: Iterable[bytes], path: Path) -> Iterator[Record]:
    """Yields the values of JSON Lines; of a file whose first line is no JSON value, the values in the whole file."""
    numbered = ((number, line) for number, line in enumerate(_without_mark(lines), 1) if line.strip())
    first = next(numbered, None)
    if first is None:
        return
    value = _line_record(*first, path)
    seen = [first]
    if value.error is not None and first[1].lstrip()[:1] in (b"{", b"["):
        seen += numbered
        values = _whole_values(b"".join(line for _, line in seen))
        if values is not None:
            yield from _elements(values, path)
            return
        if not any(isinstance(_line_record(*item, path).value, dict) for item in seen):
            yield _broken_record(seen, path)  # one broken value, not one per line
            return
    elif isinstance(value.value, list) or _wrapping_key(value.value):  # all records in one line, unless more lines follow
        second = next(numbered, None)
        if second is None:
            yield from _elements([value.value], path)
            return
        seen.append(second)
    for item in chain(seen, numbered):
        yield _line_record(*item, path)


def _without_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the lines, the first without its byte order mark."""
    iterator = iter(lines)
    for line in iterator:
        yield line.removeprefix(b"\xef\xbb\xbf")
        break
    yield from iterator


def _line_record(number: int, line: bytes, path: Path) -> Record:
    where, name = f"{path}, line {number}", f"{path.name}:{number}"
    try:
        return Record(json.loads(line), where, name)
    except (ValueError, RecursionError) as error:
        return Record(None, where, name, _bad_line(where, line, error))


def _broken_record(lines: list[tuple[int, bytes]], path: Path) -> Record:
    """Returns the error of a file that is one JSON value, with the place where it breaks."""
    number, line = lines[0]
    where, error = f"{path}, line {number}", ValueError("no JSON value")
    text = b"".join(line for _, line in lines)
    try:
        json.loads(text)
    except json.JSONDecodeError as found:
        error, number = found, lines[min(found.lineno, len(lines)) - 1][0]
        where, line = f"{path}, line {number}", lines[min(found.lineno, len(lines)) - 1][1]
        before = found.doc[: found.pos].rstrip()
        if before.endswith(",") and found.doc[found.pos : found.pos + 1] in ("]", "}"):
            remedy = "Remove the comma."
            place = f"a comma before the closing {found.doc[found.pos]!r}"
            return Record(None, where, f"{path.name}:{number}", InputError(where, "valid JSON", place, remedy))
    except (ValueError, RecursionError) as found:
        error = ValueError(str(found))
    return Record(None, where, f"{path.name}:{number}", _bad_line(where, line, error))


def _bad_line(where: str, line: bytes, error: Exception) -> InputError:
    text = line.strip().decode("utf-8", "replace")
    got = f"{text[:60]!r}{'...' if len(text) > 60 else ''} ({error})"
    return InputError(where, "one JSON object per line", got, "Fix or remove the line.")


def _whole_values(data: bytes) -> list[Any] | None:
    """Returns the JSON values that follow each other in a file; None if it holds something else."""
    try:
        text = data.decode("utf-8")
        decoder, values, at = json.JSONDecoder(), [], 0
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            values.append(value)
            while at < len(text) and text[at] in " \t\r\n":
                at += 1
        return values
    except (ValueError, RecursionError):
        return None


_WRAPPING_KEYS = ("data", "trajectories", "examples", "records", "rows")


def _wrapping_key(value: Any) -> str | None:
    """Returns the key of the records in an object that is a whole file, if it is no record itself."""
    if not isinstance(value, dict) or recognize(value) is not None:
        return None
    keys = [key for key in _WRAPPING_KEYS if is_dict_list(value.get(key))]
    return keys[0] if len(keys) == 1 else None


def _elements(values: list[Any], path: Path) -> Iterator[Record]:
    """Yields the records: the elements of an array that is the whole file, or the values."""
    if len(values) == 1 and isinstance(values[0], list):
        for number, value in enumerate(values[0], 1):
            yield Record(value, f"{path}, element {number}", f"{path.name}:{number}")
        return
    if len(values) == 1 and (key := _wrapping_key(values[0])):
        for number, value in enumerate(values[0][key], 1):
            row = value.get("row")  # the server of Hugging Face datasets
            yield Record(row if isinstance(row, dict) else value, f"{path}, {key} {number}", f"{path.name}:{number}")
        return
    for number, value in enumerate(values, 1):
        name = path.name if len(values) == 1 else f"{path.name}:{number}"
        yield Record(value, str(path) if len(values) == 1 else f"{path}, value {number}", name)
