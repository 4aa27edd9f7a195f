"""The goals of a catalog, made as in the original."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sad.envs.webshop.catalog import Product

KINDS = ("synthetic", "human")
_SHUFFLE_SEED = 233  # as in the original, so that the goal numbers are equal
_PRICE_LIMITS = [10.0 * step for step in range(1, 100)]  # dollars
_CANDIDATE_LIMITS = 4  # the limit is drawn from the lowest limits above the price
_NO_LIMIT = 1_000_000.0
SPLITS = {"test": slice(0, 500), "eval": slice(500, 1500), "train": slice(1500, None), "all": slice(None)}


class Goal(NamedTuple):
    """A goal: the instruction for one purchase.

    Attributes:
        number: Number among the shuffled goals of the catalog, equal to the session number of the original.
        text: The instruction that an agent reads.
        product: The product that the goal was made from.
        attributes: The requested attributes.
        options: The requested options as pairs (name, value). The name is "" if the instruction only has a value.
        price_upper: The price limit, in dollars.
    """

    number: int
    text: str
    product: Product
    attributes: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    price_upper: float


def draw_prices(products: Sequence[Product], rng: random.Random) -> dict[str, float]:
    """Returns ASIN -> price. A product with a price range gets a random price from it."""
    return {one.asin: one.prices[0] if len(one.prices) == 1 else rng.uniform(*one.prices) for one in products}


def make_goals(products: Sequence[Product], prices: Mapping[str, float], rng: random.Random, kind: str) -> list[Goal]:
    """Returns all goals of a catalog, in the order of the original.

    Args:
        products: The products of the catalog.
        prices: ASIN -> price, in dollars.
        rng: Random generator for the price limits.
        kind: `"synthetic"`: for each product with a generated instruction, one goal per combination of its options.
            `"human"`: the instructions that people wrote.
    """
    goals = []
    for product in products:
        instructions = product.human if kind == "human" else (product.synthetic,) if product.synthetic else ()
        for instruction in instructions:
            price_upper, price_text = _draw_limit(prices[product.asin], rng)
            if kind == "human":
                text = instruction.text.strip(".")
                options = tuple(("", value) for value in instruction.options)
                goals.append(Goal(0, f"{text}{price_text}", product, instruction.attributes, options, price_upper))
                continue
            names = sorted(product.options)
            for values in itertools.product(*(product.options[name] for name in names)):
                options = tuple(zip(names, values))
                requested = ", and ".join(f"{name}: {value}" for name, value in options)
                text = f"{instruction.text} with {requested}" if requested else instruction.text
                goals.append(Goal(0, f"{text}{price_text}", product, instruction.attributes, options, price_upper))
    random.Random(_SHUFFLE_SEED).shuffle(goals)
    return [goal._replace(number=number) for number, goal in enumerate(goals)]


def _draw_limit(price: float, rng: random.Random) -> tuple[float, str]:
    """Returns a limit above the price and its text: the higher of two drawn limits. A very high price gets no limit."""
    above = [limit for limit in _PRICE_LIMITS if limit > price][:_CANDIDATE_LIMITS]
    if len(above) < 2:
        return _NO_LIMIT, ""
    limit = max(rng.sample(above, 2))
    return limit, f", and price lower than {limit:.2f} dollars"
