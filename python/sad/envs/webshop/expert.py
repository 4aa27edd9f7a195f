"""The scripted expert of WebShop. It sees only the text that an agent sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sad.envs.expert import Move, rollout_moves
from sad.envs.protocol import Env, Task
from sad.envs.webshop.pages import (
    BACK,
    BUY,
    DESCRIPTION,
    FEATURES,
    NEXT,
    PREVIOUS,
    ResultsPage,
    SearchResult,
    page_body,
    parse_instruction,
    parse_page,
    parse_results,
    stems,
)
from sad.trajectories.trajectory import Trajectory

_MAX_RESULTS_PAGES = 5  # results pages to look through
_MAX_PRODUCTS = 12  # products to open
_MAX_TURNS = 40  # turns after which no new product is opened
_BUY_TURNS = 10  # turns reserved to return to the best product and buy it
_MIN_SHARE = 0.75  # share of the instruction's words that a product's texts must have (sellers use different words)
_MAX_PHRASES = 3  # phrases that one line of reasoning lists


class Candidate(NamedTuple):
    """A product that was opened and left.

    Attributes:
        result: The product on the results page.
        page: Number of the results page.
        has: The requested options that it has.
        missing: The phrases of the instruction that are not in the texts read so far.
        num_found: Number of words of the instruction that are in these texts.
    """

    result: SearchResult
    page: int
    has: tuple[str, ...]
    missing: tuple[str, ...]
    num_found: int


class ShopExpert:
    """Buys the product that an instruction describes, from observations alone.

    The expert searches for the words of the instruction and opens affordable products in the order of the results. It leaves
    a product that lacks an option. It reads features and description until it has found enough words of the instruction. It
    buys the first product with all options and enough words, or else the best product that it has opened. The same
    observations always lead to the same moves.

    Args:
        first_observation: The start page, from `env.reset`.
        turns: Number of turns after which no new product is opened.
    """

    def __init__(self, first_observation: str, turns: int = _MAX_TURNS) -> None:
        self.instruction = parse_instruction(parse_page(first_observation))
        self.turns_left = turns
        self.candidates: dict[str, Candidate] = {}  # ASIN -> candidate
        self.product = SearchResult("", "", "")  # the product on the current page
        self.page = 1  # number of the results page
        self.texts: dict[str, str] = {}  # texts read about the product, by page name
        self.detail_page = ""  # name of the current detail page
        self.final: SearchResult | None = None  # the product to buy
        self.to_choose: list[str] | None = None  # option values still to click; None until the product is to be bought

    def act(self, observation: str) -> Move:
        """Returns the next move.

        Args:
            observation: The answer to the last move; for the first move, the first observation.
        """
        page = parse_page(observation)
        self.turns_left -= 1
        if results_page := parse_results(page):
            return self._choose(results_page)
        if PREVIOUS not in page:
            return self._search()
        return self._inspect(page_body(page)) if BUY in page else self._read(page_body(page))

    def _search(self) -> Move:
        """On the start page: searches for the instruction."""
        goal = self.instruction
        options = f" with {' and '.join(goal.options)}" if goal.options else ""
        twice = " Options tell products apart, so I name them twice." if goal.options else ""
        query = " ".join([goal.words, *goal.values, *goal.values])
        return Move(f"I need {goal.words}{options}{self._limit()}.{twice} I search for that.", f"search[{query}]")

    def _choose(self, results_page: ResultsPage) -> Move:
        """On a results page: opens a product, goes to the next page, or returns to the best product."""
        self.page = results_page.number
        if not results_page.results:
            return _click(BACK, "Nothing is found. I go back.")
        if self.final is None:
            unopened = [result for result in results_page.results if result.asin not in self.candidates]
            affordable = [result for result in unopened if self._affordable(result)]
            may_open = len(self.candidates) < _MAX_PRODUCTS and self.turns_left > 0
            if affordable and (may_open or not self.candidates):
                return self._open(affordable, unopened)
            if may_open and results_page.has_next and results_page.number < _MAX_RESULTS_PAGES:
                return _click(NEXT, f"Nothing else on page {results_page.number} fits. I look at the next page.")
            if not self.candidates:
                return self._open(sorted(unopened, key=lambda result: result.min_price), unopened)
            self.final = max(self.candidates.values(), key=lambda one: (len(one.has), one.num_found)).result
        best = self.candidates[self.final.asin]
        has = f"has {_join(best.has)}" if best.has else "comes nearest"
        lacks = f", but nothing on it says {_join(best.missing)}" if best.missing else ""
        reasoning = f"Of the {len(self.candidates)} products I saw, {self.final.asin} is the best: it {has}{lacks}."
        if self.final in results_page.results:
            self._enter(self.final)
            return _click(self.final.asin, f"{reasoning} I open it again.")
        return _click(PREVIOUS if results_page.number > best.page else NEXT, f"{reasoning} I turn to its page.")

    def _open(self, affordable: Sequence[SearchResult], unopened: Sequence[SearchResult]) -> Move:
        """Opens the first affordable product and compares it with the next one."""
        first, *others = affordable
        self._enter(first)
        reasoning = f"{first.asin} costs {first.price}{self._limit()}{self._in_title(first)}."
        if others:
            reasoning += f" {others[0].asin} costs {others[0].price}{self._in_title(others[0])}, and comes after it."
        if expensive := [result for result in unopened if not self._affordable(result)]:
            reasoning += f" {expensive[0].asin} costs {expensive[0].price}, too much."
        return _click(first.asin, f"{reasoning} I open {first.asin}.")

    def _enter(self, product: SearchResult) -> None:
        self.product, self.texts = product, {"title": product.title}

    def _inspect(self, page: list[str]) -> Move:
        """On a product page: leaves it, reads a detail page, chooses an option, or buys."""
        product, asin = self.product, self.product.asin
        options = page[: page.index(product.title)] if product.title in page else page
        if self.to_choose is None:
            pairs = list(zip(self.instruction.options, self.instruction.values))
            has = tuple(option for option, value in pairs if value in options)
            lacks = [option for option, value in pairs if value not in options]
            missing = self._missing()
            candidate = Candidate(product, self.page, has, missing, len(self._goal_words() & self._known_words()))
            if self.final is None and lacks:
                self.candidates[asin] = candidate
                return _click(PREVIOUS, f"{asin} costs {product.price} but has no {' and no '.join(lacks)}. I go back.")
            if self.final is None and not self._enough():
                unread = [name for name in (FEATURES, DESCRIPTION) if name not in self.texts]
                if not unread:
                    self.candidates[asin] = candidate
                    return _click(PREVIOUS, f"Nothing on {asin} says {_join(missing)}. I look for a better one.")
                self.detail_page = unread[0]
                fits = f"{asin} has {' and '.join(has)}. " if has else ""
                return _click(unread[0], f"{fits}Not found yet: {_join(missing)}. I read the {unread[0].lower()}.")
            requested = [value for value in self.instruction.values if value in options]
            self.to_choose = requested or self._mentioned(options)
        if self.to_choose:
            value = self.to_choose.pop(0)
            pairs = zip(self.instruction.options, self.instruction.values)
            option = next((option for option, one in pairs if one == value), value)
            return _click(value, f"{asin} comes with {option}, as asked for. I choose it.")
        found = [phrase for phrase in self.instruction.phrases if phrase not in self._missing()]
        has = f" and has {_join(found)}" if found else ""
        return _click(BUY, f"{asin} costs {product.price}{self._limit()}{has}. I buy it.")

    def _read(self, page: list[str]) -> Move:
        """On a detail page: reads it and goes back."""
        before = self._missing()
        self.texts[self.detail_page] = " ".join(page)
        missing = self._missing()
        found = [phrase for phrase in before if phrase not in missing]
        reasoning = f"I find {_join(found) or 'none of that'} in the {self.detail_page.lower()} of {self.product.asin}"
        reasoning += f", but not {_join(missing)}." if missing and found else "."
        return _click(PREVIOUS, f"{reasoning} I go back.")

    def _missing(self) -> tuple[str, ...]:
        """Returns the phrases of the instruction that are not in the texts read so far."""
        known = self._known_words()
        return tuple(phrase for phrase in self.instruction.phrases if not stems(phrase) <= known)

    def _enough(self) -> bool:
        """Returns whether the texts read so far have enough words of the instruction."""
        words = self._goal_words()
        return len(words & self._known_words()) >= _MIN_SHARE * len(words)

    def _goal_words(self) -> frozenset[str]:
        return frozenset().union(*map(stems, self.instruction.phrases))

    def _known_words(self) -> frozenset[str]:
        return frozenset().union(*map(stems, self.texts.values()))

    def _mentioned(self, values: list[str]) -> list[str]:
        """Returns the option values whose words are in an instruction without an option list."""
        if self.instruction.options:
            return []
        return [value for value in values if stems(value) and stems(value) <= stems(self.instruction.words)]

    def _affordable(self, result: SearchResult) -> bool:
        return self.instruction.limit is None or result.min_price < self.instruction.limit

    def _limit(self) -> str:
        return "" if self.instruction.limit is None else f", below ${self.instruction.limit:.2f}"

    def _in_title(self, result: SearchResult) -> str:
        found = [phrase for phrase in self.instruction.phrases if stems(phrase) <= stems(result.title)]
        return f", has {_join(found)} in its title" if found else ""


def rollout_expert(env: Env, task: Task, *, max_steps: int = 60) -> Trajectory:
    """Runs one episode with the expert.

    Args:
        env: A WebShop environment.
        task: One of its tasks.
        max_steps: Maximum number of actions.

    Returns:
        The episode in the `sad` format. Its last line is the answer to the last action.
    """
    observation = env.reset(task)
    expert = ShopExpert(observation, turns=min(_MAX_TURNS, max_steps - _BUY_TURNS))
    return rollout_moves(env, task, observation, expert.act, env_name="webshop", max_steps=max_steps, metrics={"score": 0.0})


def _click(name: str, reasoning: str) -> Move:
    return Move(reasoning, f"click[{name.lower()}]")


def _join(phrases: Sequence[str]) -> str:
    more = f" and {len(phrases) - _MAX_PHRASES} more" if len(phrases) > _MAX_PHRASES else ""
    return ", ".join(phrases[:_MAX_PHRASES]) + more
