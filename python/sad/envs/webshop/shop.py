"""The shop's search: BM25 over titles, descriptions, first bullet points and options."""

from __future__ import annotations

import re
from collections.abc import Sequence

import bm25s
import numpy as np

from sad.envs.webshop.catalog import Product

RESULTS = 50
_K1, _B = 1.5, 0.75
_FLOOR = 0.25  # of the mean weight: what a word in more than half of all products weighs
_WORD = re.compile(r"\w+")


class Ranking:
    """Finds products by words.

    The formula is Okapi BM25 with the usual floor for words that are in more than half of the products, whose weight
    `log((N - n + 0.5) / (n + 0.5))` would be negative. That is the search of the recorded episodes of the original
    environment; the original's own index is Lucene's and needs Java.

    Args:
        products: What can be found.
    """

    def __init__(self, products: Sequence[Product]) -> None:
        self._products = products
        documents = [_WORD.findall(_document(product)) for product in products]
        # this pair of methods gives scores in which every word's weight is positive and known, so it can be exchanged
        self._index = bm25s.BM25(k1=_K1, b=_B, method="atire", idf_method="bm25+", dtype="float64")
        self._index.index(documents, show_progress=False)
        self._weigh(len(documents))

    def search(self, query: str) -> list[Product]:
        """The products with any of the words, best first, at most 50; equals in the order of the catalogue."""
        words = self._index.get_tokens_ids(_WORD.findall(query.lower()))
        if not words:
            return []
        scores = self._index.get_scores_from_ids(words)
        best = np.argsort(-scores, kind="stable")[:RESULTS]
        return [self._products[number] for number in best if scores[number] > 0]

    def _weigh(self, total: int) -> None:
        """Exchanges the words' weights: the index has no variant with a floor."""
        data, starts = self._index.scores["data"], self._index.scores["indptr"]
        found_in = np.diff(starts)
        words = found_in > 0
        counts = found_in[words].astype(np.float64)
        weights = np.log((total - counts + 0.5) / (counts + 0.5))
        floored = np.where(weights < 0, _FLOOR * weights.mean(), weights)
        scale = np.ones(len(found_in))
        scale[words] = floored / np.log((total + 1) / counts)
        self._index.scores["data"] = data * np.repeat(scale, found_in)


def _document(product: Product) -> str:
    """What is searched of a product, as in the original: only the first bullet point."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    return " ".join([product.title, product.description, *product.features[:1], options]).lower()
