"""Finding a paragraph by its title, and the titles that come nearest where there is none."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from sad.envs.hotpotqa.score import normalize

SIMILAR = 5


class Titles:
    """The titles of some paragraphs, searched as an encyclopedia is: by name first, by words otherwise.

    Args:
        titles: All different.
        texts: The paragraphs' texts in the same order, to be searched for words too; none to search titles only.
    """

    def __init__(self, titles: Sequence[str], texts: Sequence[str] = ()) -> None:
        self._titles = titles
        self._exact = frozenset(titles)
        self._by_name = _only([normalize(title) for title in titles], titles)
        self._by_plain_name = _only([normalize(plain_name(title)) for title in titles], titles)
        self._in_title, self._in_text = _postings(titles), _postings(texts)

    def find(self, query: str) -> str | None:
        """The title that `query` names.

        Where only one title is meant, upper and lower case, punctuation and articles do not matter, nor does a remark
        in brackets behind the title (`Home (2015 film)`).
        """
        if query in self._exact:
            return query
        name = normalize(query)
        return self._by_name.get(name) or self._by_plain_name.get(name)

    def similar(self, query: str) -> list[str]:
        """Up to five titles that share words with `query`, best first, equally good ones in the order of `titles`.

        A shared word counts `log(1 + N / n)`, n being how many of the N paragraphs have it, and twice that in a title.
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
        return [self._titles[number] for number in sorted(scores, key=lambda number: (-scores[number], number))[:SIMILAR]]


def plain_name(title: str) -> str:
    """The title without a remark in brackets behind it."""
    return title[: title.rindex(" (")] if title.endswith(")") and " (" in title[1:] else title


def _only(names: Sequence[str], titles: Sequence[str]) -> dict[str, str]:
    """The title of each name that belongs to no other."""
    count = Counter(names)
    return {name: title for name, title in zip(names, titles) if count[name] == 1}


def _postings(texts: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        for word in dict.fromkeys(normalize(text).split()):
            found[word].append(number)
    return dict(found)
