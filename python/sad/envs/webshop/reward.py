"""What a purchase is worth: the reward of the WebShop paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from rapidfuzz.fuzz import token_set_ratio
from rapidfuzz.utils import default_process

from sad.envs.webshop.catalog import Product
from sad.envs.webshop.goals import Goal
from sad.envs.webshop.wording import COLORS, color_of

_ALIKE = 85  # of 100, in rapidfuzz's token set ratio
_LATIN1 = dict.fromkeys(range(128, 256))  # characters that the original's comparison drops


class Reward(NamedTuple):
    """A reward and its parts, each in [0, 1].

    Attributes:
        total: `type * (attributes met + options met + price met) / (attributes + options + 1)`.
        type: 1.0 for a product of the same kind, less for another one: 0.5, 0.1 or 0.0.
        attributes: Share of the attributes asked for that the product has.
        options: Share of the options asked for that were chosen; 1.0 if none was asked for.
        price: Whether it costs no more than it may.
    """

    total: float
    type: float
    attributes: float
    options: float
    price: float


def reward(
    bought: Product, chosen: Mapping[str, str], price: float, goal: Goal, nouns: tuple[Sequence[str], Sequence[str]]
) -> Reward:
    """Judges a purchase as the original does.

    Args:
        bought: The product.
        chosen: The chosen value of each option.
        price: What it costs, in dollars.
        goal: What was asked for.
        nouns: Those of the product's title, and those of the title of the product the goal was made from.
    """
    kind = _type(bought, goal.product, *nouns)
    attributes = sum(_has_attribute(bought, attribute) for attribute in goal.attributes)
    colors = [color_of(value) for value in chosen.values()]
    options = sum(any(_alike(color, _asked(*option)) for color in colors) for option in goal.options)
    affordable = price <= goal.price_upper
    total = kind * ((attributes + options + affordable) / (len(goal.attributes) + len(goal.options) + 1))
    share = options / len(goal.options) if goal.options else 1.0
    return Reward(total, kind, attributes / len(goal.attributes), share, float(affordable))


def _type(bought: Product, asked: Product, nouns_bought: Sequence[str], nouns_asked: Sequence[str]) -> float:
    common = len(set(nouns_bought) & set(nouns_asked)) / len(nouns_asked) if nouns_asked else 0.2
    if common == 0:
        return 0.0
    if common < 0.1:
        return 0.1
    same = bought.query == asked.query or len(bought.departments & asked.departments) >= 2 or common > 0.2
    return 1.0 if same else 0.5


def _has_attribute(bought: Product, attribute: str) -> bool:
    """Whether the product is known to have it, or its text says so."""
    if any(_alike(own, attribute) for own in bought.attributes):
        return True
    return any(attribute in part.lower() for part in (bought.title, " ".join(bought.features), bought.description))


def _asked(name: str, value: str) -> str:
    """What a chosen option, or the colour in it, is compared with.

    The original reduces a plain option asked for to its colour, but one with a name only if it is nothing but a colour;
    else it compares with name and value. So `color: a2-gray` is met by the choice `a2-gray`, reduced to `gray`, while
    `color: brown137` is met by none. That is kept.
    """
    if not name:
        return color_of(value)
    return value if value in COLORS else f"{name} {value}"


@lru_cache(maxsize=1 << 16)
def _alike(one: str, other: str) -> bool:
    return round(token_set_ratio(_plain(one), _plain(other))) > _ALIKE


def _plain(text: str) -> str:
    return default_process(text.translate(_LATIN1))
