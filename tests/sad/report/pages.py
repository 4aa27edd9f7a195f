"""Checks that every page has to pass."""

from __future__ import annotations

import html.parser
import re
from itertools import pairwise


class Checker(html.parser.HTMLParser):
    """Reads a page and checks that its tags close in order.

    Attributes:
        tags: (name, attributes) of every tag, in order.
        headings: Levels of the headings, in order.
        text: The text outside style.
    """

    VOID = frozenset(
        {"meta", "br", "hr", "img", "input", "link", "line", "rect", "path", "polyline", "polygon", "circle", "wbr"}
    )

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def count(self, tag: str) -> int:
        """Returns the number of tags of this name."""
        return sum(name == tag for name, _ in self.tags)


def check_page(page: str) -> Checker:
    """Checks that a page loads no file, runs no script, and can be used with a keyboard and a screen reader."""
    checker = Checker(page)
    attributes = [name for _, attrs in checker.tags for name in attrs]
    assert not {"src", "href", "data", "action"} & set(attributes)
    assert checker.count("script") == 0 and "url(" not in page and "@import" not in page
    assert checker.tags[0] == ("html", {"lang": "en"})
    for tag, attrs in checker.tags:
        if tag == "th":
            assert attrs.get("scope") in ("col", "row")
        if tag == "svg":
            assert attrs["role"] == "img" and attrs["aria-label"]
        if attrs.get("class") == "scroll":
            assert attrs["tabindex"] == "0" and attrs["role"] == "region" and attrs["aria-label"]
    tables, regions = checker.count("table"), [attrs for _, attrs in checker.tags if attrs.get("class") == "scroll"]
    assert tables == len(regions)  # every table scrolls by itself, so the page does not
    assert not tables or re.search(r"\.scroll \{[^}]*no-repeat local", page)  # the shadow of hidden columns
    levels = [int(tag[1]) for tag, _ in checker.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    return checker
