"""How an answer is judged: exact match and F1, as HotPotQA's official evaluation counts them."""

from __future__ import annotations

import re
import string
from collections import Counter

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_VERDICTS = ("yes", "no", "noanswer")


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words one blank apart."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> bool:
    """Whether both are the same after `normalize`."""
    return normalize(answer) == normalize(gold)


def f1(answer: str, gold: str) -> float:
    """`2 P R / (P + R)` over the words of both, as multisets after `normalize`.

    P is the share of the answer's words that are in the gold answer, R the share of the gold answer's words that are in
    the answer. Where either is `yes`, `no` or `noanswer`, anything else scores 0: half a verdict is none.
    """
    given, wanted = normalize(answer), normalize(gold)
    if given != wanted and (given in _VERDICTS or wanted in _VERDICTS):
        return 0.0
    words, gold_words = given.split(), wanted.split()
    common = sum((Counter(words) & Counter(gold_words)).values())
    return 2 * common / (len(words) + len(gold_words)) if common else 0.0
