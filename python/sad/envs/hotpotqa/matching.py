"""Text matching: scores of answers (exact match and F1), and search of paragraphs by title."""

from __future__ import annotations

import math
import re
import string
from collections import Counter, defaultdict
from collections.abc import Sequence

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_VERDICTS = ("yes", "no", "noanswer")
_SIMILAR = 5  # titles that a failed search lists


def normalize(text: str) -> str:
    """Returns the text in lower case, without ASCII punctuation and English articles, with single spaces."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> bool:
    """Returns whether both texts are equal after `normalize`, as in HotPotQA's official evaluation."""
    return normalize(answer) == normalize(gold)


def f1(answer: str, gold: str) -> float:
    """Returns the F1 score of the words of both texts, as in HotPotQA's official evaluation.

    `F1 = 2 P R / (P + R)`, with the words as multisets after `normalize`. The precision P is the share of the answer's words
    that are in the gold answer. The recall R is the share of the gold answer's words that are in the answer. If one text is
    `yes`, `no` or `noanswer`, the score is 0 unless both are equal.
    """
    given, expected = normalize(answer), normalize(gold)
    if given != expected and (given in _VERDICTS or expected in _VERDICTS):
        return 0.0
    words, gold_words = given.split(), expected.split()
    common = sum((Counter(words) & Counter(gold_words)).values())
    return 2 * common / (len(words) + len(gold_words)) if common else 0.0


class TitleIndex:
    """Finds paragraphs by title, and similar titles if no title matches.

    Args:
        titles: Distinct titles.
        texts: The texts of the paragraphs in the same order, for `similar`. Empty to search titles only.
    """

    def __init__(self, titles: Sequence[str], texts: Sequence[str] = ()) -> None:
        self._titles = titles
        self._exact = frozenset(titles)
        self._by_name = _unique_names([normalize(title) for title in titles], titles)
        self._by_short_name = _unique_names([normalize(strip_qualifier(title)) for title in titles], titles)
        self._in_title, self._in_text = _postings(titles), _postings(texts)

    def find(self, query: str) -> str | None:
        """Returns the title that matches `query`, or None.

        If only one title matches, the match ignores case, punctuation, articles, and a final qualifier in parentheses, as
        in `Home (2015 film)`.
        """
        if query in self._exact:
            return query
        name = normalize(query)
        return self._by_name.get(name) or self._by_short_name.get(name)

    def similar(self, query: str) -> list[str]:
        """Returns up to five titles that share words with `query`, the best first. Ties keep the order of `titles`.

        A shared word adds `log(1 + N / n)` to the score, and twice as much if it is in the title. N is the number of
        paragraphs, n the number of paragraphs with this word.
        """
        scores: dict[int, float] = defaultdict(float)
        for word in dict.fromkeys(normalize(query).split()):
            in_title, in_text = self._in_title.get(word, ()), self._in_text.get(word, ())
            if found := set(in_title).union(in_text):
                weight = math.log(1 + len(self._titles) / len(found))
                for number in in_text:
                    scores[number] += weight
                for number in in_title:
                    scores[number] += 2 * weight
        best = sorted(scores, key=lambda number: (-scores[number], number))
        return [self._titles[number] for number in best[:_SIMILAR]]


def strip_qualifier(title: str) -> str:
    """Returns the title without a final qualifier in parentheses."""
    return title[: title.rindex(" (")] if title.endswith(")") and " (" in title[1:] else title


def _unique_names(names: Sequence[str], titles: Sequence[str]) -> dict[str, str]:
    """Maps each name that occurs once to its title."""
    count = Counter(names)
    return {name: title for name, title in zip(names, titles) if count[name] == 1}


def _postings(texts: Sequence[str]) -> dict[str, list[int]]:
    """Maps each word to the numbers of the texts with this word."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        for word in dict.fromkeys(normalize(text).split()):
            found[word].append(number)
    return dict(found)
