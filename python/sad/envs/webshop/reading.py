"""What an agent can read: the wish in an instruction, and what a page shows, in either style."""

from __future__ import annotations

import re
from typing import NamedTuple

from sad.envs.webshop.pages import NEXT, PREVIOUS, SEPARATOR

_LIMIT = re.compile(r",? and price lower than ([\d.]+) dollars\s*$")
_OPTIONS = re.compile(r" with ((?:(?! with )[^:,])+: .*)$")  # the last `with` that is followed by a name and a colon
_BETWEEN_OPTIONS = re.compile(r", and (?=[^:,]+: )")
_BETWEEN_PHRASES = re.compile(r", | with | for | that | and ")
_LEAD = re.compile(r"(?:find me|i am looking for|i'm looking for|i need|i want)(?: an?| some)? ", re.IGNORECASE)
_MARKED = re.compile(r"\[(?:clicked )?button\] (.*) \[(?:clicked )?button_\]")
_PRICE = re.compile(r"\$([\d.]+)")
_PRICE_TAG = re.compile(r"\$[\d.]+(?: to \$[\d.]+)?")
_WORD = re.compile(r"[^\W_]+")
_ENDINGS = ("able", "ing", "ed", "s")
_FILLERS = frozenset(
    "a an and are as at be by for from i in is it its me my of on or s that the this to with you your".split()
)


class Wish(NamedTuple):
    """What an instruction asks for.

    Attributes:
        words: The instruction without its price and options.
        phrases: Its parts, each an attribute or the kind of thing.
        options: The options asked for, each as `name: value`.
        limit: What it must cost less than, in dollars; None without a limit.
    """

    words: str
    phrases: tuple[str, ...]
    options: tuple[str, ...]
    limit: float | None

    @property
    def values(self) -> tuple[str, ...]:
        """The values of `options`."""
        return tuple(option.partition(": ")[2] for option in self.options)


class Offer(NamedTuple):
    """A product in a list of results; `price` is the tag, such as "$21.49 to $24.99"."""

    asin: str
    title: str
    price: str

    @property
    def least(self) -> float:
        """The lowest price it may have, in dollars."""
        return float(_PRICE.search(self.price)[1])


class Results(NamedTuple):
    """A page of results: its number from 1, whether there is another one, and the products on it."""

    number: int
    more: bool
    offers: tuple[Offer, ...]


def wish_of(page: list[str]) -> Wish:
    """The wish on the first page."""
    text = page[page.index("Instruction:") + 1]
    limit = _LIMIT.search(text)
    text = text[: limit.start()] if limit else text
    listed = _OPTIONS.search(text)
    words = _LEAD.sub("", text[: listed.start()] if listed else text, count=1)
    options = tuple(_BETWEEN_OPTIONS.split(listed[1])) if listed else ()
    phrases = tuple(phrase.strip() for phrase in _BETWEEN_PHRASES.split(words) if stems(phrase))
    return Wish(words, phrases, options, float(limit[1]) if limit else None)


def read_page(observation: str) -> list[str]:
    """The pieces of text on a page, without marks."""
    lines = observation.split(SEPARATOR) if SEPARATOR in observation else observation.splitlines()
    marked = ((_MARKED.fullmatch(line), line) for line in lines if not line.startswith("You have clicked "))
    return [match[1] if match else line for match, line in marked]


def results_on(page: list[str]) -> Results | None:
    """What a page of results shows; None for any other page."""
    at = next((i for i, text in enumerate(page[:4]) if re.fullmatch(r"Page \d+ \(Total results: \d+\)", text)), None)
    if at is None:
        return None
    rest = [text for text in page[at + 1 :] if text not in (PREVIOUS, NEXT)]
    offers, begin = [], 0
    for end, text in enumerate(rest):
        if _PRICE_TAG.fullmatch(text):  # number, title if there is one, price
            offers.append(Offer(rest[begin], " ".join(rest[begin + 1 : end]), text))
            begin = end + 1
    return Results(int(page[at].split()[1]), NEXT in page[at + 1 : at + 3], tuple(offers))


def below(page: list[str]) -> list[str]:
    """What stands below the buttons of a product's page, or of a page on its details."""
    return page[page.index(PREVIOUS) + 1 :]


def stems(text: str) -> frozenset[str]:
    """The words of a text that say something, without the endings that a seller may well leave out."""
    return frozenset(_stem(word) for word in _WORD.findall(text.lower()) if word not in _FILLERS)


def _stem(word: str) -> str:
    ending = next((one for one in _ENDINGS if word.endswith(one) and len(word) >= len(one) + 3), "")
    return word[: len(word) - len(ending)]
