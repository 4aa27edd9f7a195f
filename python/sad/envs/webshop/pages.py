"""The shop's pages: what stands on them, and the two ways in which the original environment writes them as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from sad.envs.webshop.catalog import Product

PER_PAGE = 10
STYLES = ("text", "rich")
SEPARATOR = " [SEP] "
BACK, PREVIOUS, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
DESCRIPTION, FEATURES, REVIEWS = "Description", "Features", "Reviews"
SUB_PAGES = (DESCRIPTION, FEATURES, REVIEWS)
_SCORE = "Your score (min 0.0, max 1.0)"
# the headings of the hidden part of the last page, which the original's text shows as well
_PURCHASED = ("attrs", "category", "query", "product category")
_TARGET = ("asin", "options", "attrs", "price upper", "instuction text", "category", "product category", "query")


class Kind(Enum):
    """What a piece of a page is."""

    TEXT = "text"
    BUTTON = "button"
    PRODUCT = "product"
    OPTION = "option"


class Piece(NamedTuple):
    """One piece of text on a page; `name` is the option's, for an option's value."""

    text: str
    kind: Kind = Kind.TEXT
    name: str = ""


Page = list[Piece]


def start_page(goal: str) -> Page:
    """The page with the search field."""
    return [Piece("WebShop"), Piece("Instruction:"), Piece(goal), Piece("Search", Kind.BUTTON)]


def results_page(goal: str, found: Sequence[Product], number: int) -> Page:
    """Page `number`, from 1, of what a search found."""
    page = [*_head(goal), Piece(f"Page {number} (Total results: {len(found)})")]
    if number > 1:
        page.append(_button(PREVIOUS))
    if number * PER_PAGE < len(found):
        page.append(_button(NEXT))
    for product in found[(number - 1) * PER_PAGE : number * PER_PAGE]:
        page += [Piece(product.asin, Kind.PRODUCT), Piece(product.title), Piece(product.price_tag)]
    return page


def item_page(goal: str, product: Product) -> Page:
    """A product with its options."""
    page = [*_head(goal), _button(PREVIOUS)]
    for name, values in product.options.items():
        page.append(Piece(name))
        page += [Piece(value, Kind.OPTION, name) for value in values]
    page += [Piece(product.title), Piece(f"Price: {product.price_tag}"), Piece(f"Rating: {product.rating}")]
    return page + [_button(name) for name in (*SUB_PAGES, BUY)]


def sub_page(goal: str, product: Product, name: str) -> Page:
    """A product's description, features or reviews."""
    page = [*_head(goal), _button(PREVIOUS)]
    if name == DESCRIPTION:
        return [*page, Piece(product.description)]
    if name == FEATURES:
        return page + [Piece(feature) for feature in product.features]
    for review in product.reviews:
        page += [Piece(f'"{review.title}"'), Piece(review.stars), Piece(review.text)]
    return page if product.reviews else [*page, Piece("No reviews found")]


def done_page(product: Product, chosen: Mapping[str, str], score: float) -> Page:
    """The page after a purchase."""
    options = json.dumps(dict(chosen), sort_keys=True)
    for character in "<>&'":  # as in the original, whose page is a template
        options = options.replace(character, f"\\u{ord(character):04x}")
    texts = ["Thank you for shopping with us!", "Your code:", "None", "(Paste it in your MTurk interface.)"]
    texts += ["Purchased", "asin", product.asin, "options", options]
    for heading in _PURCHASED:
        texts += [heading, "None"]
    texts += ["Target", *_TARGET, "Goal", "None", "Reward", _SCORE, str(score), "Reward Details", "None"]
    return [Piece(text) for text in texts]


def write_page(page: Page, style: str, chosen: Mapping[str, str], visited: frozenset[str], clicked: str | None) -> str:
    """A page as text.

    Args:
        page: Its pieces.
        style: `"text"`: one line, the pieces joined by `[SEP]`. `"rich"`: a line each, with what can be clicked, and what
            was clicked, between marks.
        chosen: The options chosen on it.
        visited: The products seen before.
        clicked: An option that was clicked to get here.
    """
    pieces = [piece._replace(text=" ".join(piece.text.splitlines()).strip()) for piece in page]
    pieces = [piece for piece in pieces if piece.text]
    if style == "text":
        return SEPARATOR.join(piece.text for piece in pieces)
    lines = [f"You have clicked {clicked}."] if clicked is not None else []
    for text, kind, name in pieces:
        done = chosen.get(name) == text if kind is Kind.OPTION else kind is Kind.PRODUCT and text in visited
        mark = "clicked button" if done else "button"
        lines.append(text if kind is Kind.TEXT else f"[{mark}] {text} [{mark}_]")
    return "\n".join(lines)


def clickables(page: Page) -> dict[str, Piece]:
    """What can be clicked on a page, by its name in lower case; of options with one value the last counts."""
    buttons = {piece.text.lower(): piece for piece in page if piece.kind in (Kind.BUTTON, Kind.PRODUCT)}
    options = {piece.text: piece for piece in page if piece.kind is Kind.OPTION}
    return {name: piece for name, piece in (options | buttons).items() if name != "search"}


def _head(goal: str) -> Page:
    return [Piece("Instruction:"), Piece(goal), _button(BACK)]


def _button(text: str) -> Piece:
    return Piece(text, Kind.BUTTON)
