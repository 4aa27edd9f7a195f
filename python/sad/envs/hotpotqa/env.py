"""The HotPotQA environment: ReAct's question answering over the paragraphs that come with the questions."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any

from sad.envs.checks import check_choice, check_step, check_task_count, unknown_task
from sad.envs.hotpotqa.data import Question, QuestionFile, find_file
from sad.envs.hotpotqa.expert import rollout_expert
from sad.envs.hotpotqa.matching import TitleIndex, exact_match, f1
from sad.envs.protocol import Step, Task
from sad.envs.registry import register
from sad.errors import InputError

_CORPORA = ("own", "all")
_SENTENCES = 5  # sentences of a paragraph that a search shows
_ACTION = re.compile(r"(search|lookup|finish)\[(.*)\]", re.IGNORECASE | re.DOTALL)
_ANSWER = "Answer:"
_MAX_ECHO = 200  # characters of an agent's text that an observation repeats


@register("hotpotqa")
class HotpotQA:
    """Two-hop questions with ReAct's three actions.

    `Search[title]` shows the first five sentences of that paragraph, or similar titles. `Lookup[words]` shows the next
    sentence with these words in the paragraph that was found last. `Finish[answer]`, or a line `Answer: ...`, ends the
    episode. The episode is won if the answer is an exact match of the gold answer.

    A shallow copy runs its own episode.

    Args:
        root: Folder with the HotPotQA files, or one such file, which is then read for every split. Official JSON lists or
            JSON Lines, uncompressed or gzip.
        split: `"train"` (default) or `"dev"`. `"valid"` is an alias of `"dev"`.
        seed: Random seed of `shuffle`.
        tasks: Number of questions. None selects all. Without `shuffle` and with `corpus="own"`, only these are read.
        shuffle: Whether to shuffle the questions. Seed 233 with 500 tasks gives the order in which ReAct draws its 500
            development questions.
        corpus: The searchable paragraphs. `"own"`: those of the question (two with the supporting facts and, usually,
            eight distractors). `"all"`: those of all questions in the file.

    Attributes:
        skipped: One message per unusable record of the file, with its position and the reason.
        expert: Runs an episode with the question's annotations: `expert(env, task, *, max_steps) -> Trajectory`.

    Raises:
        InputError: An argument has an unknown value, or there is no such file. The message then has the download command.
    """

    expert = staticmethod(rollout_expert)

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
        check_choice("corpus", corpus, _CORPORA)
        check_task_count(tasks, optional=True)
        path = find_file(root, split or "train")
        limit = None if shuffle or corpus == "all" else tasks
        self._questions = QuestionFile(path, limit, with_titles=corpus == "all")
        chosen = list(self._questions.tasks)
        if shuffle:
            random.Random(seed).shuffle(chosen)
        self._tasks = tuple(chosen[:tasks])
        if tasks is not None and tasks > len(chosen):
            raise InputError("tasks", f"at most the {len(chosen)} of {path.name}", str(tasks), "Ask for fewer.")
        self._all_titles = TitleIndex(list(self._questions.titles)) if corpus == "all" else None
        self.skipped = tuple(self._questions.skipped)
        if self.skipped:
            warnings.warn(f"records skipped: {len(self.skipped)}; the first: {self.skipped[0]}", stacklevel=2)
        self._question: Question | None = None
        self._done = False

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks. The type is the question type, the goal is the question."""
        return self._tasks

    @property
    def admissible_commands(self) -> list[str]:
        """A search for each paragraph of the question. Lookups and answers are free text and not listed."""
        if self._question is None or self._done:
            return []
        return [f"Search[{title}]" for title in self._question.paragraphs]

    def question(self, task: Task) -> Question:
        """Returns the question of a task with its answer, supporting facts and paragraphs, which an agent does not see.

        Raises:
            InputError: `task` is not one of `tasks`.
        """
        number = self._questions.number(task.id) if isinstance(task, Task) else None
        if number is None:
            raise unknown_task(task, self._tasks)
        return self._questions[number]

    def reset(self, task: Task) -> str:
        """Starts an episode.

        Returns:
            One line: `Question: ` and the question.

        Raises:
            InputError: `task` is not one of `tasks`.
        """
        self._question = self.question(task)
        self._titles: TitleIndex | None = None
        self._page: tuple[str, ...] = ()
        self._looked_up: tuple[str, int] = ("", 0)  # words, number of sentences shown for them
        self._done = False
        return f"Question: {self._question.text}"

    def step(self, action: str) -> Step:
        """Runs one action. The answer to an unknown action is "Invalid action: ...".

        Returns:
            The observation. The reward is 1.0 for the gold answer, else 0.0. `info["metrics"]` and `info` have `em` and
            `f1`, which are 0.0 until there is an answer.

        Raises:
            InputError: No episode is running, or `action` is not a string.
        """
        example = "an action such as 'Search[Ankara]'"
        check_step(action, started=self._question is not None, done=self._done, example=example)
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
            observation = f"Invalid action: {_shorten(argument)}"
        info: dict[str, Any] = {"won": metrics["em"] == 1, "admissible_commands": self.admissible_commands}
        info |= {"valid": bool(verb), "metrics": metrics, **metrics}
        return Step(observation, metrics["em"], self._done, info)

    def _search(self, query: str) -> str:
        sentences = self._question.paragraphs.get(query)
        if sentences is None:
            sentences, similar = self._find(query)
            if sentences is None:
                return f"Could not find {_shorten(query)}. Similar: {similar}."
        self._page, self._looked_up = sentences, ("", 0)
        shown = " ".join(filter(None, sentences[:_SENTENCES]))
        return shown or next(filter(None, sentences))

    def _find(self, query: str) -> tuple[tuple[str, ...] | None, list[str]]:
        """Returns the sentences of the paragraph that matches, or None and similar titles."""
        own = self._question.paragraphs
        if self._titles is None:
            self._titles = self._all_titles or TitleIndex(list(own), [" ".join(sentences) for sentences in own.values()])
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


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_ECHO else f"{text[:_MAX_ECHO]}..."
