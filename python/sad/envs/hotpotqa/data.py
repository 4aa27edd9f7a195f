"""Reads HotPotQA questions: `read_question` parses one record, `QuestionFile` indexes a file."""

from __future__ import annotations

import gzip
import json
import re
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from html import unescape
from pathlib import Path
from typing import IO, Any, NamedTuple

from sad.envs.protocol import Task
from sad.errors import InputError

_FILES = {"train": "hotpot_train_v1.1", "dev": "hotpot_dev_distractor_v1"}
_ALIASES = {"valid": "dev", "validation": "dev"}
_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_PAGE = "http://curtis.ml.cmu.edu/datasets/hotpot/"
_CHUNK = 1 << 22  # bytes per read
_MAX_RECORD = 1 << 24  # characters; a longer record is broken (real records have about 6,000)
_SEPARATOR = re.compile(r"[\s,]*")


class Question(NamedTuple):
    """A question with its paragraphs and annotations.

    Attributes:
        id: The id in the dataset.
        text: The question.
        answer: The gold answer.
        type: `"bridge"` or `"comparison"`.
        level: `"easy"`, `"medium"` or `"hard"`.
        facts: The supporting facts as pairs (title, sentence number from 0). The dataset has a few facts without a
            sentence; they are left out.
        paragraphs: Title -> sentences. Empty sentences are kept, so that the sentence numbers stay correct.
    """

    id: str
    text: str
    answer: str
    type: str
    level: str
    facts: tuple[tuple[str, int], ...]
    paragraphs: dict[str, tuple[str, ...]]

    @property
    def task(self) -> Task:
        """The task that an agent sees."""
        return Task(self.id, self.type, self.text)


def read_question(record: Any) -> Question:
    """Reads a record of the dataset.

    Args:
        record: A dict with `_id` (or `id`), `question`, `answer`, `context` and, for the expert, `supporting_facts`. The
            last two are lists of pairs, as in the official files, or dicts of two lists, as on the Hugging Face Hub.

    Raises:
        ValueError: A required field is missing or malformed.
    """
    if not isinstance(record, Mapping):
        raise ValueError("the record is not an object")
    question_id, text, answer = (_text(record, *names) for names in (("_id", "id"), ("question",), ("answer",)))
    paragraphs = {}
    for title, sentences in _pairs(record.get("context"), "title", "sentences"):
        if not isinstance(title, str) or not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
            raise ValueError("`context` is not a list of titles and their sentences")
        cleaned = tuple(_one_line(sentence) for sentence in sentences)
        if any(cleaned):
            paragraphs[_title(title)] = cleaned
    if not paragraphs:
        raise ValueError("`context` has no paragraph")
    facts = []
    for title, sentence in _pairs(record.get("supporting_facts"), "title", "sent_id"):
        if isinstance(title, str) and isinstance(sentence, int):
            title = _title(title)
            if 0 <= sentence < len(paragraphs.get(title, ())):
                facts.append((title, sentence))
    kind, level = (str(record.get(name) or "unknown") for name in ("type", "level"))
    return Question(question_id, text, answer, kind, level, tuple(facts), paragraphs)


def find_file(root: Any, split: str) -> Path:
    """Returns the file of a split: `root` itself, or the file with the dataset's name in the folder `root`.

    Raises:
        InputError: There is no such file. The message has the download command.
    """
    if _ALIASES.get(split, split) not in _FILES:
        known = ", ".join(_FILES)
        raise InputError("split", f"one of {known}", repr(split), "Pass one of these, or a file as `root`.")
    name = _FILES[_ALIASES.get(split, split)]
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


class QuestionFile:
    """The questions of one file. Only the tasks and an index stay in memory; `questions[i]` reads question i.

    An uncompressed file is read again for each question. The records of a gzip file are kept in memory, each compressed.
    Objects of this class can be shared, copied, pickled and used after a fork.

    Args:
        path: JSON list or JSON Lines, uncompressed or gzip.
        limit: Maximum number of questions to read. None reads all.
        with_titles: Whether to keep the titles of all paragraphs.

    Attributes:
        tasks: The tasks, in the order of the file.
        skipped: One message per unusable record, with its position and the reason.
        titles: Paragraph title -> number of the first question with this paragraph. Empty without `with_titles`.
    """

    def __init__(self, path: Path, limit: int | None = None, *, with_titles: bool = False) -> None:
        self.path = path.absolute()  # later reads must not depend on the working directory
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
            got = f"none, and {len(self.skipped)} unusable records{first}"
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
        """Returns the number of a question in the file, or None for an unknown id."""
        return self._numbers.get(task_id)

    def _add(self, start: int, raw: bytes) -> Question | None:
        try:
            question = read_question(json.loads(raw))
            if question.id in self._numbers:
                raise ValueError(f"`_id` {question.id!r} is already used")
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
        except (EOFError, OSError, zlib.error) as error:  # a truncated file: keep the records before
            self.skipped.append(f"{self.path.name}: the rest cannot be read: {error}")


def _text(record: Mapping[str, Any], *names: str) -> str:
    for name in names:
        value = record.get(name)
        if isinstance(value, str) and (line := _one_line(value)):
            return line
    raise ValueError(f"`{names[0]}` is missing or empty")


def _pairs(value: Any, first: str, second: str) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        value = list(zip(value.get(first) or (), value.get(second) or ()))
    if not isinstance(value, list):
        return ()
    return (tuple(pair) for pair in value if isinstance(pair, (list, tuple)) and len(pair) == 2)


def _title(title: str) -> str:
    return unescape(_one_line(title))  # the files contain HTML entities: `Town &amp; Country`


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _line_records(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yields (start byte, record) for JSON Lines."""
    start = 0
    for line in file:
        if line.strip():
            yield start, line
        start += len(line)


def _list_records(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yields (start byte, record) for a JSON list, without the whole list in memory.

    The end of an invalid record is unknown, so the first invalid record is the last one, truncated.
    """
    scan = json.JSONDecoder().raw_decode
    # Latin-1 has one character per byte, so positions are byte offsets. The end of a record does not depend on the encoding.
    text = file.read1(_CHUNK).decode("latin-1")
    position, before = text.index("[") + 1, 0  # before: bytes of the file before `text`
    while True:
        position = _SEPARATOR.match(text, position).end()
        try:
            end = scan(text, position)[1]
        except (json.JSONDecodeError, RecursionError):
            chunk = file.read1(_CHUNK) if len(text) - position <= _MAX_RECORD else b""
            if chunk:
                before += position
                text, position = text[position:] + chunk.decode("latin-1"), 0
                continue
            if text[position : position + 1] != "]":
                yield before + position, text[position : position + 100].encode("latin-1")
            return
        yield before + position, text[position:end].encode("latin-1")
        position = end
