"""The small pieces of language that the expert speaks with: what is asked, what is named, which words to search."""

from __future__ import annotations

import re

from sad.envs.hotpotqa.score import normalize
from sad.envs.hotpotqa.search import plain_name

_WORD = re.compile(r"[^\W_]+(?:['’.\-][^\W_]+)*")
_TOKEN = re.compile(rf"{_WORD.pattern}|[,;:?(]")
_BE = "is are was were be".split()
_BREAK = frozenset(
    "is are was were be been being did does do has have had can could will would should that who whom whose which what of "
    "in on at by for from to with and or but as if where when into during than under about wrote won made became sang led "
    "held took gave plays , ; : ? (".split()
)
_COMMON = _BREAK | frozenset(
    "the a an this these those it its he she his her they their there how why not no both either same also between other "
    "one name named called known best more most many much first last after before".split()
)
_QUOTED_WORDS = 24
_OTHERS = {"who": "the person", "whom": "the person", "where": "the place", "when": "the date"}
_QUANTITY = {"many": "the number of", "much": "the amount of"}


def asked(question: str) -> str:
    """What a question asks for, as a phrase: `the nationality`, `the number of Grammy awards`, `the person who wrote it`."""
    words = _TOKEN.findall(question)
    lower = [word.lower() for word in words]
    if lower[:1] == ["who"]:
        if lower[1:2] and lower[1] in _BE and lower[2:3] == ["the"] and (phrase := _phrase(words[3:])):
            return f"the {phrase}"
        return f"the person who {phrase}" if (phrase := _phrase(words[1:])) else "the person"
    if lower[:1] in (["where"], ["when"]):
        return _OTHERS[lower[0]]
    for at, word in enumerate(lower[:-1]):
        if word in ("which", "what"):
            start = at + 1
            if lower[start] in _BE and start + 1 < len(words) and lower[start + 1] in ("the", "a", "an"):
                start += 2
            if phrase := _phrase(words[start:]):
                return f"the {phrase}"
        if word == "how" and (before := _QUANTITY.get(lower[at + 1])) and (phrase := _phrase(words[at + 2 :])):
            return f"{before} {phrase}"
    return next((_OTHERS[word] for word in lower if word in _OTHERS), "the answer")


def content_words(text: str) -> list[str]:
    """Words that say what a text is about, each once, in its order."""
    found = {word.lower(): word for word in reversed(_WORD.findall(text)) if word.lower() not in _COMMON}
    return list(reversed(found.values()))


def names_of(title: str) -> list[str]:
    """What a paragraph may be called in a text: its title, without a remark in brackets, up to a comma."""
    plain = plain_name(title)
    return list(dict.fromkeys((title, plain, plain.partition(",")[0])))


def named_in(title: str, text: str) -> str | None:
    """The first of `names_of(title)` that stands in `text`; a single word must have the same case there."""
    padded = f" {normalize(text)} "
    for name in names_of(title):
        if " " not in name:
            if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text):
                return name
        elif (wanted := normalize(name)) and f" {wanted} " in padded:
            return name
    return None


def quote(sentence: str, *about: str) -> str:
    """A sentence in quotation marks; of a long one, the words around the first of `about` that stands in it."""
    words = sentence.split()
    if len(words) > _QUOTED_WORDS:
        lower = sentence.lower()
        found = next((at for one in about if one and (at := lower.find(one.lower())) >= 0), 0)
        center = len(sentence[:found].split())
        start = max(0, min(center - _QUOTED_WORDS // 2, len(words) - _QUOTED_WORDS))
        end = start + _QUOTED_WORDS
        words = ["..."] * (start > 0) + words[start:end] + ["..."] * (end < len(words))
    return f'"{" ".join(words)}"'


def _phrase(words: list[str]) -> str:
    """The words before the first that ends a noun phrase; none if there are more than a phrase has."""
    ends = (at for at, word in enumerate(words) if word.lower() in _BREAK or (at and word.islower() and word.endswith("ed")))
    length = next(ends, len(words))
    return " ".join(words[:length]) if length <= 5 else ""
