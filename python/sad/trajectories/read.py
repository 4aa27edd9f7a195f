"""Reads trajectories from files, folders and data sets of any registered source."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

from sad.errors import InputError
from sad.trajectories.messages import shown
from sad.trajectories.normalize import parsed
from sad.trajectories.refused import Refused, check_on_error, stop_error
from sad.trajectories.sources import Source, get_source, recognize
from sad.trajectories.sources.base import is_dict_list
from sad.trajectories.trajectory import Trajectory, from_record

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".traj", ".parquet")
_MAX_LINE_BYTES = 512 << 20
_DATASET_FILES = ("dataset_info.json", "dataset_dict.json", "state.json")


class _Value(NamedTuple):
    """A JSON value, its location for messages, the id of a trajectory that has none, and why it cannot be read."""

    value: Any
    where: str
    id: str
    error: InputError | None = None


def read_trajectories(
    path: str | os.PathLike[str] | Iterable[Any],
    source: str | Source = "auto",
    *,
    limit: int | None = None,
    say: Callable[[str], None] | None = None,
    refused: list[Refused] | None = None,
) -> list[Trajectory]:
    """Reads trajectories of any source: logs of APIs, of agent frameworks, and training files.

    Args:
        path: A file, a folder, or rows (a `datasets.Dataset` or any iterable of dicts). Files are JSON Lines, one JSON value
            (an array holds one record per element), or parquet, each gzipped or not. A folder is read with its subfolders,
            in the order of the names.
        source: The name of a source (`sad.sources()`), or "auto" to recognize every record by its keys.
        limit: Maximum number of trajectories to read. None reads all.
        say: Receives one line that tells what was recognized, such as "ShareGPT conversations, 300 trajectories".
        refused: Receives the records that cannot be read; the others are returned. None: the first one raises.

    Raises:
        InputError: A file is missing or unreadable, or a record is of no known source. The message names file and line.
    """
    chosen = None if source == "auto" else get_source(source)
    found, titles = [], Counter()

    def refuse(item: _Value, error: InputError) -> None:
        if refused is None:
            raise error
        refused.append(Refused(item.id, error))

    for values in _files(path):
        for trajectory, title in _trajectories(values, chosen, None if limit is None else limit - len(found), refuse):
            found.append(trajectory)
            titles[title] += 1
        if limit is not None and len(found) >= limit:
            break
    if say is not None and found:
        say("; ".join(f"{title}, {count} trajector{'y' if count == 1 else 'ies'}" for title, count in titles.items()))
    return found


def read_data(
    path: str | os.PathLike[str], source: str | Source, on_error: str, say: Callable[[str], None] | None = None
) -> tuple[list[Trajectory], list[Refused]]:
    """Reads the trajectories of a command, and the records that cannot be read.

    Args:
        path: As in `read_trajectories`.
        source: As in `read_trajectories`.
        on_error: "stop": records that cannot be read raise one error. "skip": they are returned.
        say: As in `read_trajectories`.

    Raises:
        InputError: As in `read_trajectories`, or a record cannot be read and `on_error` is "stop".
    """
    check_on_error(on_error)
    refused: list[Refused] = []
    trajectories = read_trajectories(path, source, say=say, refused=refused)
    if refused and on_error == "stop":
        raise stop_error(refused, len(refused) + len(trajectories))
    return trajectories, refused


def read_jsonl(path: str | os.PathLike[str], *, limit: int | None = None) -> list[Trajectory]:
    """Reads trajectories as `read_trajectories` does; the name remains from the time when it read JSON Lines only.

    Args:
        path: As in `read_trajectories`.
        limit: Maximum number of trajectories to read. None reads all.

    Raises:
        InputError: As in `read_trajectories`.
    """
    return read_trajectories(path, limit=limit)


def read_values(path: str | os.PathLike[str]) -> Iterator[tuple[Any, str]]:
    """Yields the records of a JSON Lines, JSON or parquet file as they are, each with its location for messages.

    Args:
        path: The file, gzipped or not.

    Raises:
        InputError: The file is missing or unreadable.
    """
    if not Path(path).is_file():
        raise InputError(str(path), "a file", "no such file", "Check the path.")
    for item in _file(Path(path)):
        if item.error is not None:
            raise item.error
        yield item.value, item.where


_Refuse = Callable[[_Value, InputError], None]


def _trajectories(
    values: Iterable[_Value], chosen: Source | None, limit: int | None, refuse: _Refuse
) -> Iterator[tuple[Trajectory, str]]:
    """Yields the trajectories of one file, and the title of the source of each."""
    count = 0
    groups: dict[tuple[str, Any], list[_Value]] = {}
    found_sources: dict[str, Source] = {}
    for item in values:
        if limit is not None and count >= limit:
            return
        try:
            if item.error is not None:
                raise item.error
            item = item._replace(value=_parsed_lists(item.value))
            source = chosen or recognize(item.value)
            if source is not None and source.group is not None and not isinstance(item.value, list):
                key = _group_key(source, item)
                if key is not None:
                    found_sources[source.name] = source
                    groups.setdefault((source.name, key), []).append(item)
                continue
            read = _read_one(item, source)
        except InputError as error:
            refuse(item, error)
            continue
        for trajectory in read:
            yield trajectory, source.title if source else "trajectories"
            count += 1
    for (name, _), items in groups.items():
        if limit is not None and count >= limit:
            return
        source = found_sources[name]
        whole = _Value(
            [item.value for item in items], items[0].where, items[0].id if len(groups) > 1 else _file_id(items[0])
        )
        try:
            read = _call(source, whole.value, whole)
        except InputError as error:
            refuse(whole, error)
            continue
        for trajectory in read:
            yield trajectory, source.title
            count += 1


def _parsed_lists(record: Any) -> Any:
    """Returns a record with its messages as lists: tables often hold them as JSON text."""
    if not isinstance(record, dict):
        return record
    read = {}
    for key in _LIST_KEYS:
        text = record.get(key)
        if isinstance(text, str) and text.lstrip()[:2] in ("[{", "[ ", "[\n") and is_dict_list(value := parsed(text)):
            read[key] = value
    return {**record, **read} if read else record


_LIST_KEYS = ("messages", "conversations", "conversation", "history", "trajectory", "traj", "steps")


def _group_key(source: Source, item: _Value) -> Any:
    """Returns the key of the group of a record whose trajectory stands in several records.

    Raises:
        InputError: The record is not of this source.
    """
    if recognize(item.value, source) is None:
        remedy = "Remove it, or name another source."
        raise InputError(item.where, f"a record of {source.title}", shown(item.value), remedy)
    return source.group(item.value)


def _file_id(item: _Value) -> str:
    return item.id.rpartition(":")[0] or item.id


def _read_one(item: _Value, source: Source | None) -> list[Trajectory]:
    value = item.value
    if isinstance(value, list) and value and source is None:  # a conversation as a list of messages, one per line
        inner = recognize(value[0])
        if inner is not None and inner.group is not None:
            source = inner
    if source is None:
        return [_named(from_record(value, item.where), item)]
    return _call(source, value, item)


def _call(source: Source, value: Any, item: _Value) -> list[Trajectory]:
    """Calls a source's reader; every error names the place in the file."""
    try:
        read = source.read(value)
    except InputError as error:
        inside = error.where.removeprefix("record").removeprefix(", ")
        where = f"{item.where}, {inside}" if inside else item.where
        raise InputError(where, error.expected, error.got, error.remedy) from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        got = f"{shown(value)} ({type(error).__name__}: {error})"
        raise InputError(item.where, f"a record of {source.title}", got, "Fix it, or name another source.") from error
    several = read if isinstance(read, list) else [read]
    return [_named(one, item, number if len(several) > 1 else 0) for number, one in enumerate(several, 1)]


def _named(trajectory: Trajectory, item: _Value, number: int = 0) -> Trajectory:
    own = isinstance(item.value, dict) and item.value.get("id") == ""  # an empty id is an id
    if not trajectory.id and not own:
        trajectory.id = f"{item.id}#{number}" if number else item.id
    trajectory.where = item.where
    return trajectory


def _files(path: Any) -> Iterator[Iterable[_Value]]:
    """Yields the values of each file, or of the rows."""
    if not isinstance(path, (str, os.PathLike)):
        yield _rows(path)
        return
    path = Path(path)
    if not path.exists():
        raise InputError(str(path), "a file of trajectories", "no such file", "Check the path.")
    if not path.is_dir():
        yield _file(path)
        return
    if any((path / name).exists() for name in _DATASET_FILES):
        yield _rows(_load_dataset(path), f"{path}, row", path.name)
        return
    files = sorted(file for file in path.rglob("*") if file.is_file() and _has_suffix(file))
    if not files:
        raise InputError(str(path), f"a folder with readable files ({', '.join(_SUFFIXES)})", "none", "Check the path.")
    yield from map(_file, files)


def _has_suffix(file: Path) -> bool:
    name = file.name.lower().removesuffix(".gz")
    return name.endswith(_SUFFIXES) and not file.name.startswith(".")


def _rows(rows: Any, where: str = "row", id: str = "row") -> Iterator[_Value]:
    if isinstance(rows, dict):  # a datasets.DatasetDict, or one record
        if not all(hasattr(split, "column_names") for split in rows.values()) or not rows:
            rows = [rows]
        else:
            rows = [row for split in rows.values() for row in split]
    try:
        iterator = iter(rows)
    except TypeError:
        expected = "a path, or an iterable of records"
        raise InputError("path", expected, type(rows).__name__, "Pass a file, a folder or a data set.") from None
    for number, row in enumerate(iterator, 1):
        yield _Value(row, f"{where} {number}", f"{id}:{number}")


def _load_dataset(path: Path) -> Any:
    try:
        from datasets import load_from_disk

        return load_from_disk(str(path))
    except ImportError:
        got = "no library `datasets`"
        raise InputError(str(path), "the library that reads this data set", got, "Run `pip install datasets`.") from None
    except (OSError, ValueError) as error:
        raise InputError(str(path), "a data set saved with save_to_disk", str(error), "Check the folder.") from None


def _file(path: Path) -> Iterator[_Value]:
    """Yields the values of a file."""
    if path.name.lower().endswith(".parquet"):
        yield from _rows(_load_parquet(path), f"{path}, row", path.name)
        return
    try:
        with path.open("rb") as raw:
            zipped = path.suffix == ".gz" or raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            yield from _json_values(_lines(file, path), path)
    except (OSError, EOFError, zlib.error) as error:  # BadGzipFile is an OSError; a truncated archive raises EOFError
        raise InputError(str(path), "a readable JSON Lines file (.gz: gzipped)", str(error), "Check the file.") from None


def _lines(file: Any, path: Path) -> Iterator[bytes]:
    """Yields the lines of a file in UTF-8; a file in UTF-16, as PowerShell writes it, is converted.

    13 MB of gzip can hold a line that fills the memory, so a line has a maximum length.
    """
    if file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        text = io.TextIOWrapper(file, encoding="utf-16", newline="\n")  # the separators of Unicode do not end a line
        read = lambda: text.readline(_MAX_LINE_BYTES + 1).encode()  # noqa: E731
    else:
        read = lambda: file.readline(_MAX_LINE_BYTES + 1)  # noqa: E731
    for number in count(1):
        try:
            line = read()
        except UnicodeError as error:
            raise OSError(f"not the UTF-16 that its first bytes announce ({error})") from None
        if len(line) > _MAX_LINE_BYTES:
            expected = f"lines of at most {_MAX_LINE_BYTES >> 20} MiB"
            raise InputError(f"{path}, line {number}", expected, "a longer one", "Write one trajectory per line.")
        if not line:
            return
        yield line


def _load_parquet(path: Path) -> Iterator[Any]:
    try:
        import pyarrow.parquet
    except ImportError:
        got = "no library `pyarrow`"
        raise InputError(str(path), "the library that reads parquet", got, "Run `pip install pyarrow`.") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(str(path), "a parquet file", str(error)[:200], "Check the file.") from None


def _json_values(lines: Iterable[bytes], path: Path) -> Iterator[_Value]:
    """Yields the values of JSON Lines; of a file whose first line is no JSON value, the values in the whole file."""
    numbered = ((number, line) for number, line in enumerate(_without_mark(lines), 1) if line.strip())
    first = next(numbered, None)
    if first is None:
        return
    value = _line_value(*first, path)
    seen = [first]
    if value.error is not None and first[1].lstrip()[:1] in (b"{", b"["):
        seen += numbered
        values = _whole_values(b"".join(line for _, line in seen))
        if values is not None:
            yield from _elements(values, path)
            return
        if not any(isinstance(_line_value(*item, path).value, dict) for item in seen):
            yield _broken_value(seen, path)  # one broken value, not one per line
            return
    elif isinstance(value.value, list) or _wrapping_key(value.value):  # all records in one line, unless more lines follow
        second = next(numbered, None)
        if second is None:
            yield from _elements([value.value], path)
            return
        seen.append(second)
    for item in chain(seen, numbered):
        yield _line_value(*item, path)


def _without_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the lines, the first without its byte order mark."""
    iterator = iter(lines)
    for line in iterator:
        yield line.removeprefix(b"\xef\xbb\xbf")
        break
    yield from iterator


def _line_value(number: int, line: bytes, path: Path) -> _Value:
    where, name = f"{path}, line {number}", f"{path.name}:{number}"
    try:
        return _Value(json.loads(line), where, name)
    except (ValueError, RecursionError) as error:
        return _Value(None, where, name, _bad_line(where, line, error))


def _broken_value(lines: list[tuple[int, bytes]], path: Path) -> _Value:
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
            return _Value(None, where, f"{path.name}:{number}", InputError(where, "valid JSON", place, remedy))
    except (ValueError, RecursionError) as found:
        error = ValueError(str(found))
    return _Value(None, where, f"{path.name}:{number}", _bad_line(where, line, error))


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


def _elements(values: list[Any], path: Path) -> Iterator[_Value]:
    """Yields the records: the elements of an array that is the whole file, or the values."""
    if len(values) == 1 and isinstance(values[0], list):
        for number, value in enumerate(values[0], 1):
            yield _Value(value, f"{path}, element {number}", f"{path.name}:{number}")
        return
    if len(values) == 1 and (key := _wrapping_key(values[0])):
        for number, value in enumerate(values[0][key], 1):
            row = value.get("row")  # the server of Hugging Face datasets
            yield _Value(row if isinstance(row, dict) else value, f"{path}, {key} {number}", f"{path.name}:{number}")
        return
    for number, value in enumerate(values, 1):
        name = path.name if len(values) == 1 else f"{path.name}:{number}"
        yield _Value(value, str(path) if len(values) == 1 else f"{path}, value {number}", name)
