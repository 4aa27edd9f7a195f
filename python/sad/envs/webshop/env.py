"""The WebShop environment: search for products, read their pages, choose options, buy."""

from __future__ import annotations

import importlib.util
import random
import re
import warnings
from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from sad.envs.checks import check_choice, check_step, check_task_count, unknown_task
from sad.envs.protocol import Step, Task
from sad.envs.registry import register
from sad.envs.webshop import pages
from sad.envs.webshop.catalog import CATALOGS, Product, read_catalog
from sad.envs.webshop.expert import rollout_expert
from sad.envs.webshop.goals import KINDS, SPLITS, Goal, draw_prices, make_goals
from sad.errors import InputError

if TYPE_CHECKING:  # needs the libraries of the extra, which the constructor checks
    from sad.envs.webshop.shop import Shop

_LIBRARIES = ("bm25s", "rapidfuzz")
_ACTION = re.compile(r"(search|click)\[(.+)\]", re.IGNORECASE)
_NO_METRICS = {"score": 0.0, "type": 0.0, "attributes": 0.0, "options": 0.0, "price": 0.0}


@register("webshop")
class WebShop:
    """The shop of the WebShop paper, with the catalog, pages, goals, splits and reward of the original.

    The actions are `search[words]`, on every page, and `click[name]` with the text of a button, product or option on the
    page, in any case. Another action shows the page again. A purchase ends the episode. The episode is won at reward 1.

    A shallow copy runs its own episode.

    Args:
        root: Folder with the original's data files.
        split: A split of the original: `"train"` (default), `"eval"` or `"test"`. Or `"all"`.
        seed: Random seed for the price of a product with a price range, and for the price limit of each goal.
        catalog: `"small"` (1,000 products) or `"all"`. None selects the small catalog if its file exists.
        goals: `"synthetic"`: generated from attributes and options. `"human"`: written by people.
        pages: `"text"`: a page is one line, with its elements joined by `[SEP]`. `"rich"`: one line per element, with marks
            around clickable elements.
        tasks: Number of tasks. None selects all of the split.
        nouns: Function that returns the nouns of a title in lower case. None selects all words that are in no closed word
            class. The original uses spaCy.

    Attributes:
        skipped: One message per unusable product, with its position and the reason.
        expert: Runs an episode from what an agent sees: `expert(env, task, *, max_steps) -> Trajectory`.

    Raises:
        InputError: An argument has an unknown value, a library is not installed, or a file is missing or broken. For a file,
            the message has the download command.
    """

    expert = staticmethod(rollout_expert)

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
        rng = random.Random(seed)
        prices = draw_prices(products, rng)
        chosen = make_goals(products, prices, rng, goals)[SPLITS[split]][:tasks]
        if not chosen or (tasks is not None and len(chosen) < tasks):
            remedy = "Ask for fewer, or use another split or the whole catalog."
            raise InputError("tasks", f"at most the {len(chosen)} {goals} goals of split {split!r}", str(tasks), remedy)
        self._goals = {_task(goal, goals).id: goal for goal in chosen}
        self._tasks = tuple(_task(goal, goals) for goal in chosen)
        self._style = pages
        self._shop: Shop = Shop(products, prices, nouns)
        self._goal: Goal | None = None
        self._done = False
        self.skipped = tuple(skipped)
        if skipped:
            warnings.warn(f"{len(skipped)} products skipped; the first: {skipped[0]}", stacklevel=2)

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks. The id contains the goal's number in the original, the type is the product category."""
        return self._tasks

    @property
    def admissible_commands(self) -> list[str]:
        """A click for each clickable element. On the start page, a search for the instruction."""
        if self._goal is None or self._done:
            return []
        if self._at_start:
            return [f"search[{self._goal.text.lower()}]"]
        return [f"click[{name}]" for name in pages.clickables(self._page)]

    def reset(self, task: Task) -> str:
        """Starts an episode.

        Returns:
            The page with the search field and the instruction.

        Raises:
            InputError: `task` is not one of `tasks`.
        """
        goal = self._goals.get(task.id) if isinstance(task, Task) else None
        if goal is None:
            raise unknown_task(task, self._tasks)
        self._goal, self._done = goal, False
        self._visited: frozenset[str] = frozenset()
        self._start()
        return self._format()

    def step(self, action: str) -> Step:
        """Runs one action.

        Returns:
            The next page. The reward is 0 before a purchase. `info["metrics"]` has the reward as `score`, and its parts.

        Raises:
            InputError: No episode is running, or `action` is not a string.
        """
        example = "an action such as 'search[red shoes]'"
        check_step(action, started=self._goal is not None, done=self._done, example=example)
        matched = _ACTION.match(action.strip())
        verb, name = (matched[1].lower(), matched[2].strip().lower()) if matched else ("", "")
        metrics, clicked = _NO_METRICS, None
        if verb == "search" and name:
            self._found = self._shop.index.search(name)
            self._show_results(1)
            valid = True
        elif valid := verb == "click" and (element := pages.clickables(self._page).get(name)) is not None:
            clicked = element.text if element.kind is pages.ElementKind.OPTION else None
            if element.text == pages.BUY:
                metrics = self._buy()
            else:
                self._click(element)
        info: dict[str, Any] = {"won": metrics["score"] == 1, "admissible_commands": self.admissible_commands}
        info |= {"valid": valid, "metrics": dict(metrics)}
        return Step(self._format(clicked), metrics["score"], self._done, info)

    def _click(self, element: pages.Element) -> None:
        text, goal = element.text, self._goal.text
        if element.kind is pages.ElementKind.PRODUCT:
            self._product = self._shop[text]
            self._visited |= {text}
            self._page = pages.item_page(goal, self._product)
        elif element.kind is pages.ElementKind.OPTION:
            self._chosen = {**self._chosen, element.name: text}
            self._page = pages.item_page(goal, self._product)
        elif text == pages.BACK:
            self._start()
        elif text == pages.NEXT:
            self._show_results(self._page_number + 1)
        elif text in pages.DETAIL_PAGES:
            self._page, self._on_detail_page = pages.detail_page(goal, self._product, text), True
        elif self._on_detail_page:
            self._page, self._on_detail_page = pages.item_page(goal, self._product), False
        else:
            self._show_results(self._page_number if self._product is not None else self._page_number - 1)

    def _start(self) -> None:
        self._forget_product()
        self._at_start, self._page = True, pages.start_page(self._goal.text)

    def _show_results(self, number: int) -> None:
        self._forget_product()
        self._at_start, self._page_number = False, number
        self._page = pages.results_page(self._goal.text, self._found, number)

    def _forget_product(self) -> None:
        self._product: Product | None = None
        self._chosen: dict[str, str] = {}
        self._on_detail_page = False

    def _buy(self) -> dict[str, float]:
        reward = self._shop.reward(self._goal, self._product, self._chosen)
        self._page, self._done = pages.done_page(self._product, self._chosen, reward.total), True
        return {"score": reward.total} | {name: value for name, value in reward._asdict().items() if name != "total"}

    def _format(self, clicked: str | None = None) -> str:
        return pages.format_page(self._page, self._style, self._chosen, self._visited, clicked)


def _task(goal: Goal, kind: str) -> Task:
    return Task(f"{kind}-{goal.number}", goal.product.category, goal.text)


def _check(split: str, catalog: str | None, goals: str, style: str, tasks: int | None) -> None:
    """Checks the arguments and libraries before any file is read."""
    choices = [("split", split, tuple(SPLITS)), ("goals", goals, KINDS), ("pages", style, pages.STYLES)]
    if catalog is not None:
        choices.append(("catalog", catalog, CATALOGS))
    for name, value, known in choices:
        check_choice(name, value, known)
    check_task_count(tasks, optional=True)
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        remedy = 'Install them with `pip install ".[webshop]"`.'
        raise InputError("webshop", "the libraries " + " and ".join(_LIBRARIES), "no " + " and no ".join(missing), remedy)
