"""Phrases for the reasoning of the HotPotQA expert: the subject of a question, names in a text, search words, quotes."""

from __future__ import annotations

import re

from sad.envs.hotpotqa.matching import normalize, strip_qualifier

_WORD = re.compile(r"[^\W_]+(?:['’.\-][^\W_]+)*")
_TOKEN = re.compile(rf"{_WORD.pattern}|[,;:?(]")
_BE = "is are was were be".split()
# Words that end a noun phrase.
_BREAK = frozenset(
    "is are was were be been being did does do has have had can could will would should that who whom whose which what of "
    "in on at by for from to with and or but as if where when into during than under about wrote won made became sang led "
    "held took gave plays , ; : ? (".split()
)
# Words that the expert does not search for.
_COMMON = _BREAK | frozenset(
    "the a an this these those it its he she his her they their there how why not no both either same also between other "
    "one name named called known best more most many much first last after before".split()
)
_QUOTED_WORDS = 24  # maximum length of a quote
_SUBJECTS = {"who": "the person", "whom": "the person", "where": "the place", "when": "the date"}
_QUANTITY = {"many": "the number of", "much": "the amount of"}


def question_subject(question: str) -> str:
    """Returns a phrase for the subject of a question.

    Examples: `the nationality`, `the number of Grammy awards`, `the person who wrote it`.
    """
    words = _TOKEN.findall(question)
    lower = [word.lower() for word in words]
    if lower[:1] == ["who"]:
        if lower[1:2] and lower[1] in _BE and lower[2:3] == ["the"] and (phrase := _phrase(words[3:])):
            return f"the {phrase}"
        return f"the person who {phrase}" if (phrase := _phrase(words[1:])) else "the person"
    if lower[:1] in (["where"], ["when"]):
        return _SUBJECTS[lower[0]]
    for at, word in enumerate(lower[:-1]):
        if word in ("which", "what"):
            start = at + 1
            if lower[start] in _BE and start + 1 < len(words) and lower[start + 1] in ("the", "a", "an"):
                start += 2
            if phrase := _phrase(words[start:]):
                return f"the {phrase}"
        if word == "how" and (before := _QUANTITY.get(lower[at + 1])) and (phrase := _phrase(words[at + 2 :])):
            return f"{before} {phrase}"
    return next((_SUBJECTS[word] for word in lower if word in _SUBJECTS), "the answer")


def content_words(text: str) -> list[str]:
    """Returns the distinct words of a text without common words, in the order of the text."""
    found = {word.lower(): word for word in reversed(_WORD.findall(text)) if word.lower() not in _COMMON}
    return list(reversed(found.values()))


def find_name(title: str, text: str) -> str | None:
    """Returns the name of a paragraph as it occurs in a text, or None.

    The names of a paragraph are its title, the title without its qualifier in parentheses, and the part of that before a
    comma. A name of one word must have the same case in the text.
    """
    padded = f" {normalize(text)} "
    short = strip_qualifier(title)
    for name in dict.fromkeys((title, short, short.partition(",")[0])):
        if " " not in name:
            if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text):
                return name
        elif (normalized := normalize(name)) and f" {normalized} " in padded:
            return name
    return None


def quote(sentence: str, focus: str) -> str:
    """Returns a sentence in quotation marks. A long sentence is cut to the words around `focus`, if it contains it."""
    words = sentence.split()
    if len(words) > _QUOTED_WORDS:
        lower = sentence.lower()
        found = max(0, lower.find(focus.lower()))
        center = len(sentence[:found].split())
        start = max(0, min(center - _QUOTED_WORDS // 2, len(words) - _QUOTED_WORDS))
        end = start + _QUOTED_WORDS
        words = ["..."] * (start > 0) + words[start:end] + ["..."] * (end < len(words))
    return f'"{" ".join(words)}"'


def _phrase(words: list[str]) -> str:
    """Returns the words up to the end of the noun phrase, or "" if they are more than five."""
    ends = (at for at, word in enumerate(words) if word.lower() in _BREAK or (at and word.islower() and word.endswith("ed")))
    length = next(ends, len(words))
    return " ".join(words[:length]) if length <= 5 else ""
