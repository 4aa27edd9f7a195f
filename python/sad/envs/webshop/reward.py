"""The reward of a purchase, as in the WebShop paper."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from rapidfuzz.fuzz import token_set_ratio
from rapidfuzz.utils import default_process

from sad.envs.webshop.catalog import Product
from sad.envs.webshop.goals import Goal

_MIN_RATIO = 85  # rapidfuzz token set ratio (0 to 100) above which two texts match
_LATIN1 = dict.fromkeys(range(128, 256))  # characters that the original removes before it compares texts
_WORD = re.compile(r"[\w.]*[^\W\d_][\w.]*")  # contains a letter; `0.5oz` is one word
_POSSESSIVE = re.compile(r"['’]s\b")
# Closed word classes of English. Nearly all other words of a product title are nouns or names.
_NOT_NOUNS = frozenset(
    """
    a an the this that these those each both all any some every no none other such
    i me my we us our you your he him his she her it its they them their who whom whose which what
    and or but nor yet so if because while although though whether than then as
    of in on at by for from to into onto with without within about above across after against along among around before
    behind below beneath beside between beyond down up over under inside near off out outside per since through till toward
    until upon via like during except
    is are was were be been being am do does did has have had can could will would shall should may might must
    not very too more most only also just here there even again never when where how why
    one two three four five six seven eight nine ten x
    """.split()
)
# The colors of the original, in its order. The first color that occurs in an option represents the option.
_COLORS = tuple(
    """
    alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo caramel
    champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream crystal dark denim
    eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather indigo ivory ivy khaki
    lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha multicolor mushroom mustard
    natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal rust sand sapphire seashell silver
    skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise violet walnut wheat white wine yellow
    """.split()
)


class Reward(NamedTuple):
    """A reward and its parts, each in [0, 1].

    Attributes:
        total: `type * (matched attributes + matched options + price) / (attributes + options + 1)`.
        type: 1.0 for a product of the same type, else 0.5, 0.1 or 0.0.
        attributes: Share of the goal's attributes that the product has.
        options: Share of the goal's options that were chosen. 1.0 if the goal has no options.
        price: 1.0 if the price is within the goal's limit, else 0.0.
    """

    total: float
    type: float
    attributes: float
    options: float
    price: float


def reward(
    bought: Product, chosen: Mapping[str, str], price: float, goal: Goal, nouns: tuple[Sequence[str], Sequence[str]]
) -> Reward:
    """Returns the reward of a purchase, computed as in the original.

    Args:
        bought: The product.
        chosen: Option name -> chosen value.
        price: Price of the product, in dollars.
        goal: The goal.
        nouns: The nouns of the product's title, and of the title of the goal's product.
    """
    type_score = _type_score(bought, goal.product, *nouns)
    attributes = sum(_has_attribute(bought, attribute) for attribute in goal.attributes)
    colors = [_color_of(value) for value in chosen.values()]
    options = sum(any(_similar(color, _goal_option(*option)) for color in colors) for option in goal.options)
    affordable = price <= goal.price_upper
    total = type_score * ((attributes + options + affordable) / (len(goal.attributes) + len(goal.options) + 1))
    share = options / len(goal.options) if goal.options else 1.0
    return Reward(total, type_score, attributes / len(goal.attributes), share, float(affordable))


def title_nouns(title: str) -> tuple[str, ...]:
    """Returns the nouns and names of a title in lower case: all words that are in no closed word class.

    The original uses spaCy's tagger. docs/webshop.md compares the two.
    """
    words = (word.strip("._") for word in _WORD.findall(_POSSESSIVE.sub(" ", title.lower())))
    return tuple(word for word in words if word not in _NOT_NOUNS)


def _color_of(option: str) -> str:
    """Returns the first color that occurs in an option, or the option itself if it has none."""
    return next((color for color in _COLORS if color in option), option)


def _type_score(bought: Product, target: Product, nouns_bought: Sequence[str], nouns_target: Sequence[str]) -> float:
    """Compares the types of two products by the nouns of their titles, their search query and their departments."""
    common = len(set(nouns_bought) & set(nouns_target)) / len(nouns_target) if nouns_target else 0.2
    if common == 0:
        return 0.0
    if common < 0.1:
        return 0.1
    same = bought.query == target.query or len(bought.departments & target.departments) >= 2 or common > 0.2
    return 1.0 if same else 0.5


def _has_attribute(bought: Product, attribute: str) -> bool:
    """Returns whether the product has a similar attribute, or its text contains the attribute."""
    if any(_similar(own, attribute) for own in bought.attributes):
        return True
    return any(attribute in part.lower() for part in (bought.title, " ".join(bought.features), bought.description))


def _goal_option(name: str, value: str) -> str:
    """Returns the text of a goal's option that is compared with the chosen options.

    As in the original: an option without a name is reduced to its color. An option with a name is reduced only if its value
    is exactly a color; else the text is name and value. Chosen options are always reduced to their color. Therefore the
    choice `a2-gray`, reduced to `gray`, matches the goal `color: a2-gray`, but no choice matches `color: brown137`.
    """
    if not name:
        return _color_of(value)
    return value if value in _COLORS else f"{name} {value}"


@lru_cache(maxsize=1 << 16)
def _similar(one: str, other: str) -> bool:
    return round(token_set_ratio(_plain(one), _plain(other))) > _MIN_RATIO


def _plain(text: str) -> str:
    return default_process(text.translate(_LATIN1))
