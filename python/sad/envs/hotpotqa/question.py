"""One question of HotPotQA, in any of the layouts in which the dataset is handed on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import unescape
from typing import Any, NamedTuple

from sad.envs.protocol import Task


class Question(NamedTuple):
    """A question with its paragraphs and annotations.

    Attributes:
        id: The dataset's own.
        text: The question.
        answer: The gold answer.
        type: `"bridge"` or `"comparison"`.
        level: `"easy"`, `"medium"` or `"hard"`.
        facts: The supporting facts, each a title and the number of a sentence in that paragraph, from 0. Facts that
            point at no sentence (the dataset has a few) are left out.
        paragraphs: Title to sentences. A sentence may be empty, so that the numbers of the facts hold.
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
        """What an agent is told of it."""
        return Task(self.id, self.type, self.text)


def read_question(record: Any) -> Question:
    """Reads a record of the dataset.

    Args:
        record: With `_id` (or `id`), `question`, `answer`, `context` and, for the expert, `supporting_facts`. The
            latter two are lists of pairs, as in the official files, or objects of two lists, as on the Hugging Face hub.

    Raises:
        ValueError: Something an episode needs is missing; the message says what.
    """
    if not isinstance(record, Mapping):
        raise ValueError("the record is no object")
    question_id, text, answer = (_text(record, *names) for names in (("_id", "id"), ("question",), ("answer",)))
    paragraphs = {}
    for title, sentences in _pairs(record.get("context"), "title", "sentences"):
        if not isinstance(title, str) or not isinstance(sentences, list) or not all(isinstance(s, str) for s in sentences):
            raise ValueError("`context` is no list of titles and their sentences")
        cleaned = tuple(_one_line(sentence) for sentence in sentences)
        if any(cleaned):
            paragraphs[_title(title)] = cleaned
    if not paragraphs:
        raise ValueError("`context` holds no paragraph")
    facts = []
    for title, sentence in _pairs(record.get("supporting_facts"), "title", "sent_id"):
        if isinstance(title, str) and isinstance(sentence, int):
            title = _title(title)
            if 0 <= sentence < len(paragraphs.get(title, ())):
                facts.append((title, sentence))
    kind, level = (str(record.get(name) or "unknown") for name in ("type", "level"))
    return Question(question_id, text, answer, kind, level, tuple(facts), paragraphs)


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
    return unescape(_one_line(title))  # the files say `Town &amp; Country`


def _one_line(text: str) -> str:
    return " ".join(text.split())
