"""Reads trajectories from files, folders and data sets of any registered source."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sad.errors import InputError
from sad.trajectories.json_records import Record
from sad.trajectories.json_values import parsed
from sad.trajectories.messages import shown
from sad.trajectories.options import check_on_error
from sad.trajectories.record_files import record_files
from sad.trajectories.refused import Refused, stop_error
from sad.trajectories.sources import Source, get_source, recognize
from sad.trajectories.sources.base import is_dict_list, is_ranking
from sad.trajectories.trajectory import Trajectory, from_record


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

    def refuse(item: Record, error: InputError) -> None:
        if refused is None:
            raise error
        refused.append(Refused(item.id, error))

    for values in record_files(path):
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


_Refuse = Callable[[Record, InputError], None]


def _trajectories(
    values: Iterable[Record], chosen: Source | None, limit: int | None, refuse: _Refuse
) -> Iterator[tuple[Trajectory, str]]:
    """Yields the trajectories of one file, and the title of the source of each."""
    count = 0
    groups: dict[tuple[str, Any], list[Record]] = {}
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
        whole = Record(
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


def _group_key(source: Source, item: Record) -> Any:
    """Returns the key of the group of a record whose trajectory stands in several records.

    Raises:
        InputError: The record is not of this source.
    """
    if recognize(item.value, source) is None:
        remedy = "Remove it, or name another source."
        raise InputError(item.where, f"a record of {source.title}", shown(item.value), remedy)
    return source.group(item.value)


def _file_id(item: Record) -> str:
    return item.id.rpartition(":")[0] or item.id


def _read_one(item: Record, source: Source | None) -> list[Trajectory]:
    value = item.value
    if isinstance(value, list) and value and source is None:  # a conversation as a list of messages, one per line
        inner = recognize(value[0])
        if inner is not None and inner.group is not None:
            source = inner
    if source is None:
        return [_named(from_record(value, item.where), item)]
    return _call(source, value, item)


def _call(source: Source, value: Any, item: Record) -> list[Trajectory]:
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


def _named(trajectory: Trajectory, item: Record, number: int = 0) -> Trajectory:
    own = isinstance(item.value, dict) and item.value.get("id") == ""  # an empty id is an id
    if not trajectory.id and not own:
        trajectory.id = f"{item.id}#{number}" if number else item.id
    trajectory.where = item.where
    trajectory.ranked = is_ranking(item.value)
    return trajectory
