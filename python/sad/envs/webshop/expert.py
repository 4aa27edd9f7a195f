"""A scripted buyer that sees what an agent sees, and says what it compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sad.envs.protocol import Env, Task
from sad.envs.webshop.pages import BACK, BUY, DESCRIPTION, FEATURES, NEXT, PREVIOUS
from sad.envs.webshop.reading import Offer, Results, below, read_page, results_on, stems, wish_of
from sad.trajectories.trajectory import Trajectory

_PAGES = 5  # of results that are looked through
_OPENED = 12  # products at most
_TURNS = 40  # after which nothing new is opened
_TO_RETURN = 10  # turns that are kept to go back to the best product and buy it
_ENOUGH = 0.75  # of the wish's words must be found in a product's texts: sellers word things in their own way
_NAMED = 3  # phrases that a line of reasoning lists


class Move(NamedTuple):
    """One turn of the expert.

    Attributes:
        reasoning: One line: what was compared, and what follows.
        action: The command that follows from it.
    """

    reasoning: str
    action: str


class Look(NamedTuple):
    """What is known of a product that was opened and left.

    Attributes:
        offer: The product.
        page: The page of results it is on.
        has: The options asked for that it has.
        missing: The phrases of the wish that its texts, as far as read, do not have.
        known: How many of the wish's words they have.
    """

    offer: Offer
    page: int
    has: tuple[str, ...]
    missing: tuple[str, ...]
    known: int


class ShopExpert:
    """Buys what an instruction asks for, from observations alone.

    It searches for the words of the instruction, opens what is affordable in the order of the results, leaves what lacks an
    option, and reads features and description until enough of the instruction is found. It buys the first product that has
    all options and enough of the rest, or else the best of those it has seen. The same observations always lead to the same
    lines.

    Args:
        first_observation: The answer to `reset`.
        turns: After so many nothing new is opened.
    """

    def __init__(self, first_observation: str, turns: int = _TURNS) -> None:
        self.wish = wish_of(read_page(first_observation))
        self.turns = turns  # left
        self.looks: dict[str, Look] = {}  # by the product's number
        self.offer = Offer("", "", "")  # the product in sight
        self.page = 1  # of results
        self.texts: dict[str, str] = {}  # what was read of it, by the name of the page
        self.reading = ""  # the page of details in sight
        self.final: Offer | None = None  # what will be bought
        self.to_choose: list[str] | None = None  # values still to be clicked, once the product is to be bought

    def act(self, observation: str) -> Move:
        """The next move, given the answer to the last one (at first: the first observation)."""
        page = read_page(observation)
        self.turns -= 1
        if results := results_on(page):
            return self._choose(results)
        if PREVIOUS not in page:
            return self._search()
        return self._inspect(below(page)) if BUY in page else self._read(below(page))

    def _search(self) -> Move:
        """On the first page."""
        wish = self.wish
        asked = f" with {' and '.join(wish.options)}" if wish.options else ""
        twice = " Options tell products apart, so I name them twice." if wish.options else ""
        query = " ".join([wish.words, *wish.values, *wish.values])
        return Move(f"I need {wish.words}{asked}{self._limit()}.{twice} I search for that.", f"search[{query}]")

    def _choose(self, results: Results) -> Move:
        """On a page of results: opens a product, turns the page, or goes back to the best product."""
        self.page = results.number
        if not results.offers:
            return _click(BACK, "Nothing is found. I go back.")
        if self.final is None:
            left = [offer for offer in results.offers if offer.asin not in self.looks]
            affordable = [offer for offer in left if self._affordable(offer)]
            goes_on = len(self.looks) < _OPENED and self.turns > 0
            if affordable and (goes_on or not self.looks):
                return self._open(affordable, left)
            if goes_on and results.more and results.number < _PAGES:
                return _click(NEXT, f"Nothing else on page {results.number} fits. I look at the next page.")
            if not self.looks:
                return self._open(sorted(left, key=lambda offer: offer.least), left)
            self.final = max(self.looks.values(), key=lambda look: (len(look.has), look.known)).offer
        best = self.looks[self.final.asin]
        has = f"has {_some(best.has)}" if best.has else "comes nearest"
        lacks = f", but nothing on it says {_some(best.missing)}" if best.missing else ""
        reasoning = f"Of the {len(self.looks)} products I saw, {self.final.asin} is the best: it {has}{lacks}."
        if self.final in results.offers:
            self._enter(self.final)
            return _click(self.final.asin, f"{reasoning} I open it again.")
        return _click(PREVIOUS if results.number > best.page else NEXT, f"{reasoning} I turn to its page.")

    def _open(self, affordable: Sequence[Offer], left: Sequence[Offer]) -> Move:
        first, *others = affordable
        self._enter(first)
        reasoning = f"{first.asin} costs {first.price}{self._limit()}{self._in_title(first)}."
        if others:
            reasoning += f" {others[0].asin} costs {others[0].price}{self._in_title(others[0])}, and comes after it."
        if dear := [offer for offer in left if not self._affordable(offer)]:
            reasoning += f" {dear[0].asin} costs {dear[0].price}, too much."
        return _click(first.asin, f"{reasoning} I open {first.asin}.")

    def _enter(self, offer: Offer) -> None:
        self.offer, self.texts = offer, {"title": offer.title}

    def _inspect(self, page: list[str]) -> Move:
        """On a product's page: leaves, reads on, chooses options or buys."""
        asin, shown = self.offer.asin, page[: page.index(self.offer.title)] if self.offer.title in page else page
        if self.to_choose is None:
            pairs = list(zip(self.wish.options, self.wish.values))
            has = tuple(option for option, value in pairs if value in shown)
            lacks = [option for option, value in pairs if value not in shown]
            missing = self._missing()
            look = Look(self.offer, self.page, has, missing, len(self._wanted() & self._known()))
            if self.final is None and lacks:
                self.looks[asin] = look
                return _click(PREVIOUS, f"{asin} costs {self.offer.price} but has no {' and no '.join(lacks)}. I go back.")
            if self.final is None and not self._enough():
                unread = [name for name in (FEATURES, DESCRIPTION) if name not in self.texts]
                if not unread:
                    self.looks[asin] = look
                    return _click(PREVIOUS, f"Nothing on {asin} says {_some(missing)}. I look for a better one.")
                self.reading = unread[0]
                fits = f"{asin} has {' and '.join(has)}. " if has else ""
                return _click(unread[0], f"{fits}Not found yet: {_some(missing)}. I read the {unread[0].lower()}.")
            self.to_choose = [value for value in self.wish.values if value in shown] or self._mentioned(shown)
        if self.to_choose:
            value = self.to_choose.pop(0)
            asked = next((option for option, one in zip(self.wish.options, self.wish.values) if one == value), value)
            return _click(value, f"{asin} comes with {asked}, as asked for. I choose it.")
        found = [phrase for phrase in self.wish.phrases if phrase not in self._missing()]
        has = f" and has {_some(found)}" if found else ""
        return _click(BUY, f"{asin} costs {self.offer.price}{self._limit()}{has}. I buy it.")

    def _read(self, page: list[str]) -> Move:
        """On a page with details."""
        before = self._missing()
        self.texts[self.reading] = " ".join(page)
        missing = self._missing()
        found = [phrase for phrase in before if phrase not in missing]
        reasoning = f"I find {_some(found) or 'none of that'} in the {self.reading.lower()} of {self.offer.asin}"
        reasoning += f", but not {_some(missing)}." if missing and found else "."
        return _click(PREVIOUS, f"{reasoning} I go back.")

    def _missing(self) -> tuple[str, ...]:
        """The phrases of the wish that nothing read so far has."""
        known = self._known()
        return tuple(phrase for phrase in self.wish.phrases if not stems(phrase) <= known)

    def _enough(self) -> bool:
        """Whether most words of the wish have been read."""
        wanted = self._wanted()
        return len(wanted & self._known()) >= _ENOUGH * len(wanted)

    def _wanted(self) -> frozenset[str]:
        return frozenset().union(*map(stems, self.wish.phrases))

    def _known(self) -> frozenset[str]:
        return frozenset().union(*map(stems, self.texts.values()))

    def _mentioned(self, values: list[str]) -> list[str]:
        """Option values that an instruction without a list of options mentions."""
        if self.wish.options:
            return []
        return [value for value in values if stems(value) and stems(value) <= stems(self.wish.words)]

    def _affordable(self, offer: Offer) -> bool:
        return self.wish.limit is None or offer.least < self.wish.limit

    def _limit(self) -> str:
        return "" if self.wish.limit is None else f", below ${self.wish.limit:.2f}"

    def _in_title(self, offer: Offer) -> str:
        found = [phrase for phrase in self.wish.phrases if stems(phrase) <= stems(offer.title)]
        return f", has {_some(found)} in its title" if found else ""


def play_expert(env: Env, task: Task, *, max_steps: int = 60) -> Trajectory:
    """Plays one task with the expert.

    Args:
        env: A shop.
        task: One of its tasks.
        max_steps: Actions after which the episode is given up.

    Returns:
        The episode in the `sad` format; its last line is the answer to the last action.
    """
    observation = env.reset(task)
    expert = ShopExpert(observation, turns=min(_TURNS, max_steps - _TO_RETURN))
    lines, info, steps, done = [observation], {"won": False, "metrics": {"score": 0.0}}, 0, False
    while not done and steps < max_steps:
        move = expert.act(observation)
        observation, _, done, info = env.step(move.action)
        steps += 1
        lines += [f"Reasoning: {move.reasoning}", f"Action: {move.action}", observation]
    return Trajectory(
        id=task.id,
        text="\n".join(lines) + "\n",
        format="sad",
        env="webshop",
        task=task.goal,
        success=info["won"],
        extra={"type": task.type, "steps": steps, "model": "scripted expert", "metrics": info["metrics"]},
    )


def _click(name: str, reasoning: str) -> Move:
    return Move(reasoning, f"click[{name.lower()}]")


def _some(phrases: Sequence[str]) -> str:
    more = f" and {len(phrases) - _NAMED} more" if len(phrases) > _NAMED else ""
    return ", ".join(phrases[:_NAMED]) + more
