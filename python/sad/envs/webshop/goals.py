"""What is to be bought: goals made from a catalogue as the original makes them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sad.envs.webshop.catalog import Product

KINDS = ("synthetic", "human")
_SHUFFLE_SEED = 233  # the original's, so that its goal number i is ours
_LIMITS = [10.0 * step for step in range(1, 100)]  # dollars
_LIMITS_ABOVE = 4  # a limit is one of this many above the price, and not the lowest
_NO_LIMIT = 1_000_000.0
SPLITS = {"test": slice(0, 500), "eval": slice(500, 1500), "train": slice(1500, None), "all": slice(None)}


class Goal(NamedTuple):
    """One thing to buy.

    Attributes:
        number: Its place among the shuffled goals of the catalogue, the session number of the original.
        text: The instruction an agent reads.
        product: The product it was made from.
        attributes: The attributes asked for.
        options: The options asked for, as name and value; the name is "" where only a value is asked for.
        price_upper: What it may cost, in dollars.
    """

    number: int
    text: str
    product: Product
    attributes: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    price_upper: float


def draw_prices(products: Sequence[Product], draws: random.Random) -> dict[str, float]:
    """A price for each product; one given as a range is drawn from it."""
    return {one.asin: one.prices[0] if len(one.prices) == 1 else draws.uniform(*one.prices) for one in products}


def make_goals(products: Sequence[Product], prices: Mapping[str, float], draws: random.Random, kind: str) -> list[Goal]:
    """All goals of a catalogue, in the original's order.

    `"synthetic"`: for every product with an instruction made from its attributes, one goal for each combination of its
    options. `"human"`: the instructions that people wrote.
    """
    goals = []
    for product in products:
        requests = product.human if kind == "human" else (product.synthetic,) if product.synthetic else ()
        for request in requests:
            price_upper, price_text = _limit(prices[product.asin], draws)
            if kind == "human":
                text = request.text.strip(".")
                options = tuple(("", value) for value in request.options)
                goals.append(Goal(0, f"{text}{price_text}", product, request.attributes, options, price_upper))
                continue
            names = sorted(product.options)
            for values in itertools.product(*(product.options[name] for name in names)):
                options = tuple(zip(names, values))
                wanted = ", and ".join(f"{name}: {value}" for name, value in options)
                text = f"{request.text} with {wanted}" if wanted else request.text
                goals.append(Goal(0, f"{text}{price_text}", product, request.attributes, options, price_upper))
    random.Random(_SHUFFLE_SEED).shuffle(goals)
    return [goal._replace(number=number) for number, goal in enumerate(goals)]


def _limit(price: float, draws: random.Random) -> tuple[float, str]:
    """A limit above the price and the words for it; none where the price is too high for one."""
    above = [limit for limit in _LIMITS if limit > price][:_LIMITS_ABOVE]
    if len(above) < 2:
        return _NO_LIMIT, ""
    limit = max(draws.sample(above, 2))
    return limit, f", and price lower than {limit:.2f} dollars"
