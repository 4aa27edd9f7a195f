"""All that the seats of one shop share: products, prices and the search, made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

from sad.envs.webshop.catalog import Product
from sad.envs.webshop.goals import Goal
from sad.envs.webshop.ranking import Ranking
from sad.envs.webshop.reward import Reward, reward

Nouns = Callable[[str], Sequence[str]]


class Shop:
    """A catalogue with prices, which can be searched and in which a purchase is judged.

    Args:
        products: What there is.
        prices: What each costs, in dollars.
        nouns: Gives the nouns of a title.
    """

    def __init__(self, products: Sequence[Product], prices: dict[str, float], nouns: Nouns) -> None:
        self._products, self._prices, self._nouns = products, prices, nouns
        self._by_asin = {product.asin: product for product in products}
        self._nouns_of: dict[str, Sequence[str]] = {}  # by title, filled as titles are judged

    def __getitem__(self, asin: str) -> Product:
        return self._by_asin[asin]

    @cached_property
    def ranking(self) -> Ranking:
        """The search; its index is made at the first one."""
        return Ranking(self._products)

    def judge(self, goal: Goal, bought: Product, chosen: dict[str, str]) -> Reward:
        """What buying a product with these options is worth."""
        nouns = self._title_nouns(bought.title), self._title_nouns(goal.product.title)
        return reward(bought, chosen, self._prices[bought.asin], goal, nouns)

    def _title_nouns(self, title: str) -> Sequence[str]:
        if title not in self._nouns_of:
            self._nouns_of[title] = tuple(self._nouns(title))
        return self._nouns_of[title]
