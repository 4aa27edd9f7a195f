"""The questions of one file: an index of where each one stands, and one question at a time decoded."""

from __future__ import annotations

import gzip
import json
import re
import sys
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sad.envs.hotpotqa.question import Question, read_question
from sad.envs.protocol import Task
from sad.errors import InputError

FILES = {"train": "hotpot_train_v1.1", "dev": "hotpot_dev_distractor_v1"}
ALIASES = {"valid": "dev", "validation": "dev"}
_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_PAGE = "http://curtis.ml.cmu.edu/datasets/hotpot/"
_CHUNK = 1 << 22  # bytes read at a time
_LONGEST = 1 << 24  # characters: a record that is not complete after so many is broken; real ones have some 6,000
_SEPARATOR = re.compile(r"[\s,]*")


def find_file(root: Any, split: str) -> Path:
    """The file that holds a split: `root` itself, or the one under the dataset's own name in that folder.

    Raises:
        InputError: There is none; the message names the command that downloads it.
    """
    if ALIASES.get(split, split) not in FILES:
        known = ", ".join(FILES)
        raise InputError("split", f"one of {known}", repr(split), "Pass one of these, or a file as `root`.")
    name = FILES[ALIASES.get(split, split)]
    command = f"curl --create-dirs -o {root or 'hotpotqa'}/{name}.json {_PAGE}{name}.json"
    remedy = f"Download it: {command}"
    if root is None:
        raise InputError("root", "a folder with HotPotQA's files, or one of them", "None", remedy)
    path = Path(root)
    if path.is_file():
        return path
    found = next((file for ending in _ENDINGS if (file := path / (name + ending)).is_file()), None)
    if found is None:
        got = "a folder without it" if path.is_dir() else "no such file or folder"
        raise InputError("root", f"{name}.json in {str(root)!r}", got, remedy)
    return found


class Questions:
    """The questions of one file, of which only what is asked is kept in memory.

    A plain file is read again for each question; the records of a compressed one are kept compressed, one by one. So
    objects of this class can be shared, copied, pickled and used after a fork.

    Args:
        path: JSON list or JSON lines, as it is or compressed with gzip.
        limit: Questions to read at most; None for all.
        with_titles: Keep the titles of all paragraphs.

    Attributes:
        tasks: What is asked, in the order of the file.
        skipped: For each record that could not be used, where it stands and why.
        titles: For each paragraph title, the first question with that paragraph, by its number; empty without `with_titles`.
    """

    def __init__(self, path: Path, limit: int | None = None, *, with_titles: bool = False) -> None:
        self.path = path.absolute()  # it is read again later, whatever the working directory is then
        self.tasks: list[Task] = []
        self.skipped: list[str] = []
        self.titles: dict[str, int] = {}
        self._compressed: list[bytes] | None = [] if _is_gzip(path) else None
        self._starts, self._lengths = array("Q"), array("Q")
        self._numbers: dict[str, int] = {}
        for start, raw in self._records():
            question = self._add(start, raw)
            if with_titles and question is not None:
                for title in question.paragraphs:
                    self.titles.setdefault(title, len(self.tasks) - 1)
            if len(self.tasks) == limit:
                break
        if not self.tasks:
            first = f"; the first: {self.skipped[0]}" if self.skipped else ""
            got = f"none, and {len(self.skipped)} records that cannot be used{first}"
            raise InputError(str(path), "questions with answers and paragraphs", got, "Pass a train or dev file.")

    def __getitem__(self, number: int) -> Question:
        if self._compressed is not None:
            raw = zlib.decompress(self._compressed[number])
        else:
            with open(self.path, "rb") as file:
                file.seek(self._starts[number])
                raw = file.read(self._lengths[number])
        return read_question(json.loads(raw))

    def number(self, task_id: str) -> int | None:
        """The place of a question in the file's order; None for an unknown one."""
        return self._numbers.get(task_id)

    def _add(self, start: int, raw: bytes) -> Question | None:
        try:
            question = read_question(json.loads(raw))
            if question.id in self._numbers:
                raise ValueError(f"`_id` {question.id!r} is there already")
        except (ValueError, RecursionError) as error:
            self.skipped.append(f"{self.path.name}, byte {start}: {error}")
            return None
        self._numbers[question.id] = len(self.tasks)
        self.tasks.append(question.task._replace(type=sys.intern(question.type)))
        if self._compressed is not None:
            self._compressed.append(zlib.compress(raw, 6))
        else:
            self._starts.append(start)
            self._lengths.append(len(raw))
        return question

    def _records(self) -> Iterator[tuple[int, bytes]]:
        opener = gzip.open if self._compressed is not None else open
        try:
            with opener(self.path, "rb") as file:
                head = file.read(64)
                file.seek(0)
                yield from (_list_records if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") else _line_records)(file)
        except (EOFError, OSError, zlib.error) as error:  # a file that was cut off: what came before is good
            self.skipped.append(f"{self.path.name}: the rest cannot be read: {error}")


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _line_records(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    start = 0
    for line in file:
        if line.strip():
            yield start, line
        start += len(line)


def _list_records(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Records of a JSON list, with the byte each starts at, without the whole list in memory.

    Where a record ends cannot be told after one that is no JSON, so that one comes as the last, cut short.
    """
    scan = json.JSONDecoder().raw_decode
    # one character a byte, so that positions are bytes; where a record ends does not depend on the encoding
    text = file.read1(_CHUNK).decode("latin-1")
    position, before = text.index("[") + 1, 0  # `before`: bytes of the file before `text`
    while True:
        position = _SEPARATOR.match(text, position).end()
        try:
            end = scan(text, position)[1]
        except (json.JSONDecodeError, RecursionError):
            chunk = file.read1(_CHUNK) if len(text) - position <= _LONGEST else b""
            if chunk:
                before += position
                text, position = text[position:] + chunk.decode("latin-1"), 0
                continue
            if text[position : position + 1] != "]":
                yield before + position, text[position : position + 100].encode("latin-1")
            return
        yield before + position, text[position:end].encode("latin-1")
        position = end
