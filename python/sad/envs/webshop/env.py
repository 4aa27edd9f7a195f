"""The WebShop benchmark as a world: search, look, choose, buy."""

from __future__ import annotations

import importlib.util
import random
import re
import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from sad.envs.protocol import Step, Task
from sad.envs.registry import register
from sad.envs.webshop import pages
from sad.envs.webshop.catalog import CATALOGS, Product, read_catalog
from sad.envs.webshop.expert import play_expert
from sad.envs.webshop.goals import KINDS, SPLITS, Goal, draw_prices, make_goals
from sad.envs.webshop.wording import title_nouns
from sad.errors import InputError

if TYPE_CHECKING:  # needs the libraries of the extra, which the constructor asks for
    from sad.envs.webshop.shop import Shop

_NEEDS = ("bm25s", "rapidfuzz")
_ACTION = re.compile(r"(search|click)\[(.+)\]", re.IGNORECASE)
_UNBOUGHT = {"score": 0.0, "type": 0.0, "attributes": 0.0, "options": 0.0, "price": 0.0}


@register("webshop")
class WebShop:
    """The shop of the WebShop paper on the original's catalogue, with its pages, goals, splits and reward.

    Actions are `search[words]`, on any page, and `click[name]` with the name of a button, a product or an option of the
    page, in any case. Anything else shows the page again. Buying ends the episode, which is won at reward 1.

    A shallow copy is an independent seat.

    Args:
        root: Folder with the original's data files.
        split: `"train"` (default), `"eval"` or `"test"`, the original's, or `"all"`.
        seed: Of what the original draws at random: a price where the catalogue gives a range, and each goal's limit.
        catalog: `"small"` (1,000 products) or `"all"`; None takes the small one if it is there.
        goals: `"synthetic"`, made from attributes and options, or `"human"`, written by people.
        pages: `"text"`: a page is one line, joined by `[SEP]`. `"rich"`: a line for each piece of text, with what can be
            clicked between marks.
        tasks: How many; None for all of the split.
        nouns: Gives the nouns of a title, in lower case; None takes all words but those of closed classes. The original
            asks spaCy.

    Attributes:
        skipped: For each product that could not be used, which and why.
        expert: Plays a task from what an agent sees: `expert(env, task, *, max_steps) -> Trajectory`.

    Raises:
        InputError: An argument is not what is listed here, a library is not installed, or a file is missing or broken; the
            message then has the command that gets it.
    """

    expert = staticmethod(play_expert)

    def __init__(
        self,
        root: str | PathLike[str] | None = None,
        split: str | None = None,
        seed: int = 0,
        *,
        catalog: str | None = None,
        goals: str = "synthetic",
        pages: str = "text",
        tasks: int | None = None,
        nouns: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        _check(split := split or "train", catalog, goals, pages, tasks)
        from sad.envs.webshop.shop import Shop

        products, skipped = read_catalog(root, catalog, human=goals == "human")
        draws = random.Random(seed)
        prices = draw_prices(products, draws)
        chosen = make_goals(products, prices, draws, goals)[SPLITS[split]][:tasks]
        if not chosen or (tasks is not None and len(chosen) < tasks):
            remedy = "Ask for fewer, take another split or the whole catalogue."
            raise InputError("tasks", f"at most the {len(chosen)} {goals} goals of split {split!r}", str(tasks), remedy)
        self._goals = {_task(goal, goals).id: goal for goal in chosen}
        self._tasks = tuple(_task(goal, goals) for goal in chosen)
        self._style = pages
        self._shop: Shop = Shop(products, prices, nouns or title_nouns)
        self._goal: Goal | None = None
        self._done = False
        self.skipped = tuple(skipped)
        if skipped:
            warnings.warn(f"{len(skipped)} products skipped; the first: {skipped[0]}", stacklevel=2)

    @property
    def tasks(self) -> Sequence[Task]:
        """The goals on offer; a task's id has the goal's number in the original, its type is the department."""
        return self._tasks

    @property
    def admissible_commands(self) -> list[str]:
        """A click for all that can be clicked; where the page is the one to search from, a search for the instruction."""
        if self._goal is None or self._done:
            return []
        if self._at_start:
            return [f"search[{self._goal.text.lower()}]"]
        return [f"click[{name}]" for name in pages.clickables(self._page)]

    def reset(self, task: Task) -> str:
        """Starts an episode.

        Returns:
            The page with the search field, which has the instruction.

        Raises:
            InputError: `task` is not one of this world's.
        """
        goal = self._goals.get(task.id) if isinstance(task, Task) else None
        if goal is None:
            got = repr(task.id) if isinstance(task, Task) else f"a {type(task).__name__}"
            raise InputError("task", f"one of the {len(self._tasks)} tasks of this world", got, "Pick from env.tasks.")
        self._goal, self._done = goal, False
        self._visited: frozenset[str] = frozenset()
        self._start()
        return self._written()

    def step(self, action: str) -> Step:
        """Takes an action.

        Returns:
            The page that it leads to. The reward is 0 until something is bought. `info["metrics"]` has the reward as
            `score`, and its parts.

        Raises:
            InputError: No episode is running, or `action` is not text.
        """
        if self._goal is None or self._done:
            got = "none" if self._goal is None else "one that is over"
            raise InputError("env.step", "a running episode", got, "Call env.reset(task) first.")
        if not isinstance(action, str):
            raise InputError("action", "text", f"a {type(action).__name__}", "Pass an action such as 'search[red shoes]'.")
        matched = _ACTION.match(action.strip())
        verb, name = (matched[1].lower(), matched[2].strip().lower()) if matched else ("", "")
        metrics, clicked = _UNBOUGHT, None
        if verb == "search" and name:
            self._found = self._shop.ranking.search(name)
            self._show_results(1)
            valid = True
        elif valid := verb == "click" and (piece := pages.clickables(self._page).get(name)) is not None:
            clicked = piece.text if piece.kind is pages.Kind.OPTION else None
            if piece.text == pages.BUY:
                metrics = self._buy()
            else:
                self._click(piece)
        info: dict[str, Any] = {"won": metrics["score"] == 1, "admissible_commands": self.admissible_commands}
        info |= {"valid": valid, "metrics": dict(metrics)}
        return Step(self._written(clicked), metrics["score"], self._done, info)

    def _click(self, piece: pages.Piece) -> None:
        text, goal = piece.text, self._goal.text
        if piece.kind is pages.Kind.PRODUCT:
            self._product = self._shop[text]
            self._visited |= {text}
            self._page = pages.item_page(goal, self._product)
        elif piece.kind is pages.Kind.OPTION:
            self._chosen = {**self._chosen, piece.name: text}
            self._page = pages.item_page(goal, self._product)
        elif text == pages.BACK:
            self._start()
        elif text == pages.NEXT:
            self._show_results(self._number + 1)
        elif text in pages.SUB_PAGES:
            self._page, self._below = pages.sub_page(goal, self._product, text), True
        elif self._below:  # back to the product
            self._page, self._below = pages.item_page(goal, self._product), False
        else:
            self._show_results(self._number if self._product is not None else self._number - 1)

    def _start(self) -> None:
        self._forget_product()
        self._at_start, self._page = True, pages.start_page(self._goal.text)

    def _show_results(self, number: int) -> None:
        self._forget_product()
        self._at_start, self._number, self._page = False, number, pages.results_page(self._goal.text, self._found, number)

    def _forget_product(self) -> None:
        self._product: Product | None = None
        self._chosen: dict[str, str] = {}
        self._below = False  # on a page below the product's

    def _buy(self) -> dict[str, float]:
        judged = self._shop.judge(self._goal, self._product, self._chosen)
        self._page, self._done = pages.done_page(self._product, self._chosen, judged.total), True
        return {"score": judged.total} | {name: value for name, value in judged._asdict().items() if name != "total"}

    def _written(self, clicked: str | None = None) -> str:
        return pages.write_page(self._page, self._style, self._chosen, self._visited, clicked)


def _task(goal: Goal, kind: str) -> Task:
    return Task(f"{kind}-{goal.number}", goal.product.category, goal.text)


def _check(split: str, catalog: str | None, goals: str, style: str, tasks: int | None) -> None:
    """Refuses arguments before anything is read."""
    choices = [("split", split, tuple(SPLITS)), ("goals", goals, KINDS), ("pages", style, pages.STYLES)]
    if catalog is not None:
        choices.append(("catalog", catalog, CATALOGS))
    for name, value, known in choices:
        if value not in known:
            raise InputError(name, "one of " + ", ".join(known), repr(value), "Pass one of these.")
    if tasks is not None and (isinstance(tasks, bool) or not isinstance(tasks, int) or tasks < 1):
        raise InputError("tasks", "at least one, or None for all", repr(tasks), "Ask for one or more.")
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        remedy = 'Install them with `pip install "structured-agent-distillation[webshop]"`.'
        raise InputError("webshop", "the libraries " + " and ".join(_NEEDS), "no " + " and no ".join(missing), remedy)
