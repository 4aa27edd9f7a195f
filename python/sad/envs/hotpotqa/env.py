"""ReAct's question answering, over the paragraphs that come with the questions."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any

from sad.envs.hotpotqa.data import Questions, find_file
from sad.envs.hotpotqa.expert import play_expert
from sad.envs.hotpotqa.question import Question
from sad.envs.hotpotqa.score import exact_match, f1
from sad.envs.hotpotqa.search import Titles
from sad.envs.protocol import Step, Task
from sad.envs.registry import register
from sad.errors import InputError

CORPORA = ("own", "all")
SENTENCES = 5  # of a paragraph that a search shows
QUESTION = "Question: "
_ACTION = re.compile(r"(search|lookup|finish)\[(.*)\]", re.IGNORECASE | re.DOTALL)
_ANSWER = "Answer:"
_ECHO = 200  # characters of what an agent wrote that are given back to it


@register("hotpotqa")
class HotpotQA:
    """Questions that take two paragraphs to answer, with ReAct's three actions.

    `Search[title]` shows the first five sentences of that paragraph, or titles that come near; `Lookup[words]` the next
    sentence with these words in the paragraph found last; `Finish[answer]`, or a line `Answer: ...`, ends the episode,
    which is won if the answer is the gold one by exact match.

    A shallow copy is an independent seat.

    Args:
        root: Folder with HotPotQA's files, or one such file, which is then read whatever the split: the official JSON
            lists or JSON lines, gzipped or not.
        split: `"train"` (default) or `"dev"`, also called `"valid"`.
        seed: Of `shuffle`.
        tasks: How many questions; None for all. Without `shuffle` and with `corpus="own"`, nothing beyond them is read.
        shuffle: Take the questions in random order instead of the file's. With seed 233 and 500 tasks it is the order
            in which ReAct draws its 500 questions of the development set.
        corpus: What can be found: `"own"`, the question's own paragraphs (two that matter and, mostly, eight that
            distract), or `"all"`, those of all questions in the file.

    Attributes:
        skipped: For each record of the file that could not be used, where it stands and why.
        expert: Plays a task from its annotations: `expert(env, task, *, max_steps) -> Trajectory`.

    Raises:
        InputError: An argument is not what is listed here, or there is no such file; the message then has the command
            that downloads it.
    """

    expert = staticmethod(play_expert)

    def __init__(
        self,
        root: str | PathLike[str] | None = None,
        split: str | None = None,
        seed: int = 0,
        *,
        tasks: int | None = None,
        shuffle: bool = False,
        corpus: str = "own",
    ) -> None:
        if corpus not in CORPORA:
            raise InputError("corpus", "one of " + ", ".join(CORPORA), repr(corpus), "Pass one of these.")
        if tasks is not None and (isinstance(tasks, bool) or not isinstance(tasks, int) or tasks < 1):
            raise InputError("tasks", "at least one, or None for all", repr(tasks), "Ask for one or more.")
        path = find_file(root, split or "train")
        self._questions = Questions(path, limit=None if shuffle or corpus == "all" else tasks, with_titles=corpus == "all")
        chosen = list(self._questions.tasks)
        if shuffle:
            random.Random(seed).shuffle(chosen)
        self._tasks = tuple(chosen[:tasks])
        if tasks is not None and tasks > len(chosen):
            raise InputError("tasks", f"at most the {len(chosen)} of {path.name}", str(tasks), "Ask for fewer.")
        self._all_titles = Titles(list(self._questions.titles)) if corpus == "all" else None
        self.skipped = tuple(self._questions.skipped)
        if self.skipped:
            warnings.warn(f"records skipped: {len(self.skipped)}; the first: {self.skipped[0]}", stacklevel=2)
        self._question: Question | None = None
        self._done = False

    @property
    def tasks(self) -> Sequence[Task]:
        """The questions on offer."""
        return self._tasks

    @property
    def admissible_commands(self) -> list[str]:
        """A search for each of the question's own paragraphs; what to look up and to answer is free text."""
        if self._question is None or self._done:
            return []
        return [f"Search[{title}]" for title in self._question.paragraphs]

    def question(self, task: Task) -> Question:
        """A question with its answer, supporting facts and paragraphs; an agent is told none of these.

        Raises:
            InputError: `task` is not one of this world's.
        """
        number = self._questions.number(task.id) if isinstance(task, Task) else None
        if number is None:
            got = repr(task.id) if isinstance(task, Task) else f"a {type(task).__name__}"
            raise InputError("task", f"one of the {len(self._tasks)} tasks of this world", got, "Pick from env.tasks.")
        return self._questions[number]

    def reset(self, task: Task) -> str:
        """Starts an episode.

        Returns:
            One line: `Question: ` and the question.

        Raises:
            InputError: `task` is not one of this world's.
        """
        self._question = self.question(task)
        self._titles: Titles | None = None
        self._page: tuple[str, ...] = ()
        self._looked_up: tuple[str, int] = ("", 0)  # words, and how many sentences with them were shown
        self._done = False
        return QUESTION + self._question.text

    def step(self, action: str) -> Step:
        """Takes an action; whatever is none of the four is answered "Invalid action: ...".

        Returns:
            The answer; the reward is 1.0 for the gold answer, else 0.0. `info["metrics"]`, and `info` itself, have `em` and
            `f1`, which are 0.0 until there is an answer.

        Raises:
            InputError: No episode is running, or `action` is not text.
        """
        if self._question is None or self._done:
            got = "none" if self._question is None else "one that is over"
            raise InputError("env.step", "a running episode", got, "Call env.reset(task) first.")
        if not isinstance(action, str):
            raise InputError("action", "text", f"a {type(action).__name__}", "Pass an action such as 'Search[Ankara]'.")
        action = " ".join(action.split())
        matched = _ACTION.fullmatch(action)
        verb, argument = (matched[1].lower(), matched[2].strip()) if matched else ("", action)
        if action.startswith(_ANSWER):
            verb, argument = "finish", action[len(_ANSWER) :].strip()
        metrics = {"em": 0.0, "f1": 0.0}
        if verb == "search":
            observation = self._search(argument)
        elif verb == "lookup":
            observation = self._lookup(argument)
        elif verb == "finish":
            gold = self._question.answer
            metrics = {"em": float(exact_match(argument, gold)), "f1": f1(argument, gold)}
            observation, self._done = f"Episode finished, reward = {metrics['em']:.0f}", True
        else:
            observation = f"Invalid action: {_echo(argument)}"
        info: dict[str, Any] = {"won": metrics["em"] == 1, "admissible_commands": self.admissible_commands}
        info |= {"valid": bool(verb), "metrics": metrics, **metrics}
        return Step(observation, metrics["em"], self._done, info)

    def _search(self, query: str) -> str:
        sentences = self._question.paragraphs.get(query)
        if sentences is None:
            sentences, similar = self._find(query)
            if sentences is None:
                return f"Could not find {_echo(query)}. Similar: {similar}."
        self._page, self._looked_up = sentences, ("", 0)
        shown = " ".join(filter(None, sentences[:SENTENCES]))
        return shown or next(filter(None, sentences))

    def _find(self, query: str) -> tuple[tuple[str, ...] | None, list[str]]:
        """The sentences of the paragraph that is meant, or else the titles that come near."""
        own = self._question.paragraphs
        if self._titles is None:
            self._titles = self._all_titles or Titles(list(own), [" ".join(sentences) for sentences in own.values()])
        title = self._titles.find(query)
        if title is None:
            return None, self._titles.similar(query)
        if title in own:
            return own[title], []
        return self._questions[self._questions.titles[title]].paragraphs[title], []

    def _lookup(self, words: str) -> str:
        found = [sentence for sentence in self._page if sentence and words.lower() in sentence.lower()]
        shown = self._looked_up[1] if self._looked_up[0] == words else 0
        if shown >= len(found):
            self._looked_up = (words, shown)
            return "No more results."
        self._looked_up = (words, shown + 1)
        return f"(Result {shown + 1} / {len(found)}) {found[shown]}"


def _echo(text: str) -> str:
    return text if len(text) <= _ECHO else f"{text[:_ECHO]}..."
