"""Opens files, folders and data sets, and yields their records: JSON Lines, JSON and parquet, gzipped or not."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from sad.errors import InputError
from sad.trajectories.json_records import Record, json_records

_SUFFIXES = (".jsonl", ".ndjson", ".json", ".traj", ".parquet")
_MAX_LINE_BYTES = 512 << 20
_DATASET_FILES = ("dataset_info.json", "dataset_dict.json", "state.json")


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


def record_files(path: Any) -> Iterator[Iterable[Record]]:
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


def _rows(rows: Any, where: str = "row", id: str = "row") -> Iterator[Record]:
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
        yield Record(row, f"{where} {number}", f"{id}:{number}")


def _load_dataset(path: Path) -> Any:
    try:
        from datasets import load_from_disk

        return load_from_disk(str(path))
    except ImportError:
        got = "no library `datasets`"
        raise InputError(str(path), "the library that reads this data set", got, "Run `pip install datasets`.") from None
    except (OSError, ValueError) as error:
        raise InputError(str(path), "a data set saved with save_to_disk", str(error), "Check the folder.") from None


def _file(path: Path) -> Iterator[Record]:
    """Yields the values of a file."""
    if path.name.lower().endswith(".parquet"):
        yield from _rows(_load_parquet(path), f"{path}, row", path.name)
        return
    try:
        with path.open("rb") as raw:
            zipped = path.suffix == ".gz" or raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            yield from json_records(_lines(file, path), path)
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
