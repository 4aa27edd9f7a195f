"""The shop: products with prices, their BM25 search index, and the reward of a purchase."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property

import bm25s
import numpy as np

from sad.envs.webshop.catalog import Product
from sad.envs.webshop.goals import Goal
from sad.envs.webshop.reward import Reward, reward, title_nouns

_MAX_RESULTS = 50
_K1, _B = 1.5, 0.75
_IDF_FLOOR = 0.25  # weight of a word in more than half of all products, as a share of the mean weight
_WORD = re.compile(r"\w+")

Nouns = Callable[[str], Sequence[str]]


class SearchIndex:
    """Finds products by words in title, description, first bullet point and options.

    The score is Okapi BM25. A word in more than half of the products would have a negative weight
    `log((N - n + 0.5) / (n + 0.5))` and gets the usual floor instead. The recorded episodes of the original environment used
    this search. The original's own index is Lucene, which needs Java.

    Args:
        products: The searchable products.
    """

    def __init__(self, products: Sequence[Product]) -> None:
        self._products = products
        documents = [_WORD.findall(_document(product)) for product in products]
        # With these methods every word weight is positive and known, so `_replace_idf` can replace it.
        self._index = bm25s.BM25(k1=_K1, b=_B, method="atire", idf_method="bm25+", dtype="float64")
        self._index.index(documents, show_progress=False)
        self._replace_idf(len(documents))

    def search(self, query: str) -> list[Product]:
        """Returns up to 50 products that contain a word of the query, the best first. Ties keep the catalog order."""
        words = self._index.get_tokens_ids(_WORD.findall(query.lower()))
        if not words:
            return []
        scores = self._index.get_scores_from_ids(words)
        best = np.argsort(-scores, kind="stable")[:_MAX_RESULTS]
        return [self._products[number] for number in best if scores[number] > 0]

    def _replace_idf(self, total: int) -> None:
        """Replaces the word weights of the index with Okapi's, because bm25s has no variant with a floor."""
        data, starts = self._index.scores["data"], self._index.scores["indptr"]
        document_counts = np.diff(starts)
        words = document_counts > 0
        counts = document_counts[words].astype(np.float64)
        weights = np.log((total - counts + 0.5) / (counts + 0.5))
        floored = np.where(weights < 0, _IDF_FLOOR * weights.mean(), weights)
        scale = np.ones(len(document_counts))
        scale[words] = floored / np.log((total + 1) / counts)
        self._index.scores["data"] = data * np.repeat(scale, document_counts)


class Shop:
    """The products of a catalog. Copies of an environment share one shop.

    Args:
        products: All products.
        prices: Price of each product by its ASIN, in dollars.
        nouns: Returns the nouns of a title. None selects `title_nouns`.
    """

    def __init__(self, products: Sequence[Product], prices: dict[str, float], nouns: Nouns | None) -> None:
        self._products, self._prices, self._nouns = products, prices, nouns or title_nouns
        self._by_asin = {product.asin: product for product in products}
        self._noun_cache: dict[str, Sequence[str]] = {}  # title -> nouns

    def __getitem__(self, asin: str) -> Product:
        return self._by_asin[asin]

    @cached_property
    def index(self) -> SearchIndex:
        """The search index, built at the first search."""
        return SearchIndex(self._products)

    def reward(self, goal: Goal, bought: Product, chosen: dict[str, str]) -> Reward:
        """Returns the reward for buying a product with the chosen options."""
        nouns = self._title_nouns(bought.title), self._title_nouns(goal.product.title)
        return reward(bought, chosen, self._prices[bought.asin], goal, nouns)

    def _title_nouns(self, title: str) -> Sequence[str]:
        if title not in self._noun_cache:
            self._noun_cache[title] = tuple(self._nouns(title))
        return self._noun_cache[title]


def _document(product: Product) -> str:
    """Returns the searchable text of a product. As in the original, it has only the first bullet point."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options.items())
    return " ".join([product.title, product.description, *product.features[:1], options]).lower()
