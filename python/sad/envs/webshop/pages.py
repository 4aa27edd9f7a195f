"""The pages of the shop: building them, formatting them in the two styles of the original, and parsing their text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from sad.envs.webshop.catalog import Product

_RESULTS_PER_PAGE = 10
STYLES = ("text", "rich")
SEPARATOR = " [SEP] "
BACK, PREVIOUS, NEXT, BUY = "Back to Search", "< Prev", "Next >", "Buy Now"
DESCRIPTION, FEATURES, REVIEWS = "Description", "Features", "Reviews"
DETAIL_PAGES = (DESCRIPTION, FEATURES, REVIEWS)
_SCORE = "Your score (min 0.0, max 1.0)"
# Headings of the hidden part of the last page. The text of the original includes them.
_PURCHASE_HEADINGS = ("attrs", "category", "query", "product category")
_GOAL_HEADINGS = ("asin", "options", "attrs", "price upper", "instuction text", "category", "product category", "query")
_LIMIT = re.compile(r",? and price lower than ([\d.]+) dollars\s*$")
_OPTION_LIST = re.compile(r" with ((?:(?! with )[^:,])+: .*)$")  # the last `with` before a name and a colon
_BETWEEN_OPTIONS = re.compile(r", and (?=[^:,]+: )")
_BETWEEN_PHRASES = re.compile(r", | with | for | that | and ")
_OPENING = re.compile(r"(?:find me|i am looking for|i'm looking for|i need|i want)(?: an?| some)? ", re.IGNORECASE)
_MARKED_ELEMENT = re.compile(r"\[(?:clicked )?button\] (.*) \[(?:clicked )?button_\]")
_PRICE = re.compile(r"\$([\d.]+)")
_PRICE_TAG = re.compile(r"\$[\d.]+(?: to \$[\d.]+)?")
_WORD = re.compile(r"[^\W_]+")
_SUFFIXES = ("able", "ing", "ed", "s")
_STOP_WORDS = frozenset(
    "a an and are as at be by for from i in is it its me my of on or s that the this to with you your".split()
)


class ElementKind(Enum):
    """The kind of a page element."""

    TEXT = "text"
    BUTTON = "button"
    PRODUCT = "product"
    OPTION = "option"


class Element(NamedTuple):
    """One element of a page. `name` is the option name of an option value, else ""."""

    text: str
    kind: ElementKind = ElementKind.TEXT
    name: str = ""


Page = list[Element]


def start_page(goal: str) -> Page:
    """Returns the page with the search field."""
    return [Element("WebShop"), Element("Instruction:"), Element(goal), Element("Search", ElementKind.BUTTON)]


def results_page(goal: str, found: Sequence[Product], number: int) -> Page:
    """Returns page `number` (from 1) of the search results."""
    page = [*_head(goal), Element(f"Page {number} (Total results: {len(found)})")]
    if number > 1:
        page.append(_button(PREVIOUS))
    if number * _RESULTS_PER_PAGE < len(found):
        page.append(_button(NEXT))
    for product in found[(number - 1) * _RESULTS_PER_PAGE : number * _RESULTS_PER_PAGE]:
        page += [Element(product.asin, ElementKind.PRODUCT), Element(product.title), Element(product.price_tag)]
    return page


def item_page(goal: str, product: Product) -> Page:
    """Returns the page of a product with its options."""
    page = [*_head(goal), _button(PREVIOUS)]
    for name, values in product.options.items():
        page.append(Element(name))
        page += [Element(value, ElementKind.OPTION, name) for value in values]
    page += [Element(product.title), Element(f"Price: {product.price_tag}"), Element(f"Rating: {product.rating}")]
    return page + [_button(name) for name in (*DETAIL_PAGES, BUY)]


def detail_page(goal: str, product: Product, name: str) -> Page:
    """Returns the page with the description, features or reviews of a product."""
    page = [*_head(goal), _button(PREVIOUS)]
    if name == DESCRIPTION:
        return [*page, Element(product.description)]
    if name == FEATURES:
        return page + [Element(feature) for feature in product.features]
    for review in product.reviews:
        page += [Element(f'"{review.title}"'), Element(review.stars), Element(review.text)]
    return page if product.reviews else [*page, Element("No reviews found")]


def done_page(product: Product, chosen: Mapping[str, str], score: float) -> Page:
    """Returns the page after a purchase."""
    options = json.dumps(dict(chosen), sort_keys=True)
    for character in "<>&'":  # escaped as in the HTML template of the original
        options = options.replace(character, f"\\u{ord(character):04x}")
    texts = ["Thank you for shopping with us!", "Your code:", "None", "(Paste it in your MTurk interface.)"]
    texts += ["Purchased", "asin", product.asin, "options", options]
    for heading in _PURCHASE_HEADINGS:
        texts += [heading, "None"]
    texts += ["Target", *_GOAL_HEADINGS, "Goal", "None", "Reward", _SCORE, str(score), "Reward Details", "None"]
    return [Element(text) for text in texts]


def format_page(page: Page, style: str, chosen: Mapping[str, str], visited: frozenset[str], clicked: str | None) -> str:
    """Formats a page as text.

    Args:
        page: The page.
        style: `"text"`: one line, with the elements joined by `[SEP]`. `"rich"`: one line per element, with marks around
            elements that can be clicked or were clicked.
        chosen: Option name -> chosen value.
        visited: The ASINs of the products visited before.
        clicked: The option that the last action clicked, if any.
    """
    elements = [element._replace(text=" ".join(element.text.splitlines()).strip()) for element in page]
    elements = [element for element in elements if element.text]
    if style == "text":
        return SEPARATOR.join(element.text for element in elements)
    lines = [f"You have clicked {clicked}."] if clicked is not None else []
    for text, kind, name in elements:
        done = chosen.get(name) == text if kind is ElementKind.OPTION else kind is ElementKind.PRODUCT and text in visited
        mark = "clicked button" if done else "button"
        lines.append(text if kind is ElementKind.TEXT else f"[{mark}] {text} [{mark}_]")
    return "\n".join(lines)


def clickables(page: Page) -> dict[str, Element]:
    """Maps the text of each clickable element, in lower case, to the element. Of equal option values, the last counts."""
    button_kinds = (ElementKind.BUTTON, ElementKind.PRODUCT)
    buttons = {element.text.lower(): element for element in page if element.kind in button_kinds}
    options = {element.text: element for element in page if element.kind is ElementKind.OPTION}
    return {name: element for name, element in (options | buttons).items() if name != "search"}


def _head(goal: str) -> Page:
    return [Element("Instruction:"), Element(goal), _button(BACK)]


def _button(text: str) -> Element:
    return Element(text, ElementKind.BUTTON)


class ParsedInstruction(NamedTuple):
    """The parts of an instruction.

    Attributes:
        words: The instruction without its price limit and options.
        phrases: The phrases of `words`. Each is an attribute or the kind of product.
        options: The requested options, each as `name: value`.
        limit: The price must be below this limit, in dollars. None without a limit.
    """

    words: str
    phrases: tuple[str, ...]
    options: tuple[str, ...]
    limit: float | None

    @property
    def values(self) -> tuple[str, ...]:
        """The values of `options`."""
        return tuple(option.partition(": ")[2] for option in self.options)


class SearchResult(NamedTuple):
    """A product on a results page. `price` is its price tag, such as "$21.49 to $24.99"."""

    asin: str
    title: str
    price: str

    @property
    def min_price(self) -> float:
        """The lower end of the price tag, in dollars."""
        return float(_PRICE.search(self.price)[1])


class ResultsPage(NamedTuple):
    """A results page: its number (from 1), whether there is a next page, and its results."""

    number: int
    has_next: bool
    results: tuple[SearchResult, ...]


def parse_instruction(page: list[str]) -> ParsedInstruction:
    """Parses the instruction on the start page."""
    text = page[page.index("Instruction:") + 1]
    limit = _LIMIT.search(text)
    text = text[: limit.start()] if limit else text
    option_list = _OPTION_LIST.search(text)
    words = _OPENING.sub("", text[: option_list.start()] if option_list else text, count=1)
    options = tuple(_BETWEEN_OPTIONS.split(option_list[1])) if option_list else ()
    phrases = tuple(phrase.strip() for phrase in _BETWEEN_PHRASES.split(words) if stems(phrase))
    return ParsedInstruction(words, phrases, options, float(limit[1]) if limit else None)


def parse_page(observation: str) -> list[str]:
    """Returns the texts of the elements of a page, without marks."""
    lines = observation.split(SEPARATOR) if SEPARATOR in observation else observation.splitlines()
    marked = ((_MARKED_ELEMENT.fullmatch(line), line) for line in lines if not line.startswith("You have clicked "))
    return [match[1] if match else line for match, line in marked]


def parse_results(page: list[str]) -> ResultsPage | None:
    """Parses a results page. Returns None for another page."""
    at = next((i for i, text in enumerate(page[:4]) if re.fullmatch(r"Page \d+ \(Total results: \d+\)", text)), None)
    if at is None:
        return None
    rest = [text for text in page[at + 1 :] if text not in (PREVIOUS, NEXT)]
    results, begin = [], 0
    for end, text in enumerate(rest):
        if _PRICE_TAG.fullmatch(text):  # ASIN, title (if any), price
            results.append(SearchResult(rest[begin], " ".join(rest[begin + 1 : end]), text))
            begin = end + 1
    return ResultsPage(int(page[at].split()[1]), NEXT in page[at + 1 : at + 3], tuple(results))


def page_body(page: list[str]) -> list[str]:
    """Returns the elements after the navigation buttons of a product page or detail page."""
    return page[page.index(PREVIOUS) + 1 :]


def stems(text: str) -> frozenset[str]:
    """Returns the distinct words of a text without stop words and suffixes, because sellers use different word forms."""
    return frozenset(_stem(word) for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS)


def _stem(word: str) -> str:
    suffix = next((one for one in _SUFFIXES if word.endswith(one) and len(word) >= len(one) + 3), "")
    return word[: len(word) - len(suffix)]
