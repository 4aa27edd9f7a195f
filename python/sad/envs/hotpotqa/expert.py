"""A scripted expert that knows a question's annotations, and finds and says what they rest on."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, NamedTuple

from sad.envs.hotpotqa.question import Question
from sad.envs.hotpotqa.score import normalize
from sad.envs.hotpotqa.wording import asked, content_words, named_in, quote
from sad.envs.protocol import Task
from sad.trajectories.trajectory import Trajectory

if TYPE_CHECKING:
    from sad.envs.hotpotqa.env import HotpotQA

_MISS = "Could not find "
_LISTED = re.compile(r" Similar: (\[.*\])\.$")
_YEAR = re.compile(r"\b1\d{3}\b|\b20\d{2}\b")
_EARLIER = frozenset("first earlier older oldest before earliest".split())
_LATER = frozenset("later younger recently latest newer youngest last".split())
_QUERY_WORDS = 8


class Move(NamedTuple):
    """One turn of the expert.

    Attributes:
        reasoning: One line: what is known, what is missing, which fact decides.
        line: What follows from it: an `Action: ...` or the `Answer: ...`.
    """

    reasoning: str
    line: str


class HotpotExpert:
    """Reads the supporting facts in the order of a reasoner, then answers.

    The annotations tell it which sentences decide and what the answer is. It still searches only what an agent can
    know: names in the question, names in what it has read, titles the search has listed, words of the question (a title
    that none of these leads to is the last resort). It answers once it has read every fact, and never with an answer
    that it has not read, except `yes` and `no`.

    Args:
        question: The question with its annotations.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self.asked = asked(question.text)
        self.order = _order(question)
        self.at: str | None = None  # the title that was found last
        self.read = ""  # everything read in paragraphs, spaced
        self.called: dict[str, str] = {}  # title to the words that found it
        self.listed: list[str] = []  # titles the search has offered
        self.tried: list[str] = []  # actions so far
        self.missed = False  # whether the last action was a search that found nothing

    def act(self, observation: str) -> Move | None:
        """The next move, given the answer to the last one (at first: the question); None if it gives up."""
        self._learn(observation)
        for title in self.order:
            if unread := [sentence for sentence in self._facts(title) if sentence not in self.read]:
                move = self._search(title) if self.at != title else self._lookup(title, unread[0])
                self.tried.append(move.line)
                return move
        return self._answer()

    def _learn(self, observation: str) -> None:
        if not self.tried:
            return
        self.missed = observation.startswith(_MISS)
        if self.missed:
            if listed := _LISTED.search(observation):
                self.listed += ast.literal_eval(listed[1])
            return
        self.read += f" {observation}"
        if self.tried[-1].startswith("Action: Search["):
            self.at = next((title for title in self.order if observation.startswith(self._first(title))), None)
            if self.at is not None:
                self.called[self.at] = self.tried[-1][len("Action: Search[") : -1]

    def _search(self, title: str) -> Move:
        missing = f"I still need {self.asked}." if self.at else f"I need {self.asked}."
        if len(self.order) > 1 and self.question.type == "comparison":
            missing = f"I need the same about {self._name(title)}." if self.at else self._comparison()
        known = self._known(title)
        for source, text in (("question", self.question.text), ("text", self.read)):
            name = named_in(title, text)
            if name and f"Action: Search[{name}]" not in self.tried:
                if self.question.type == "comparison":
                    why = ""
                elif source == "question":
                    why = f" The question names {name}."
                else:
                    why = f" The text leads to {name}."
                return Move(f"{known}{missing}{why} I search {name}.", f"Action: Search[{name}]")
        if title in self.listed:
            if self.missed:
                reasoning = f"There is nothing under that name, but of the similar titles {title} fits."
            else:
                reasoning = f"{known}{missing} Of the titles listed before, {title} fits."
            return Move(f"{reasoning} I search {title}.", f"Action: Search[{title}]")
        for source, words in self._queries(title):
            if f"Action: Search[{words}]" not in self.tried:
                reasoning = f"{known}{missing} No title is given for it, so I search words of the {source}."
                return Move(reasoning, f"Action: Search[{words}]")
        return Move(f"{known}{missing} Nothing names it. My guess is {title}, so I search that.", f"Action: Search[{title}]")

    def _lookup(self, title: str, fact: str) -> Move:
        """Goes on reading where a search left off: with a word of the question, or of the other paragraph's title."""
        sentences = self.question.paragraphs[title]
        words = content_words(" ".join([self.question.text, *(other for other in self.order if other != title)]))
        words = [word for word in words if word.lower() in fact.lower()] or content_words(fact) or [fact]

        def position(word: str) -> int:
            """How many sentences a lookup of `word` shows until the fact."""
            return sum(word.lower() in sentence.lower() for sentence in sentences[: sentences.index(fact) + 1])

        word = min(words, key=lambda word: (position(word), -len(word)))
        line = f"Action: Lookup[{word}]"
        if line == self.tried[-1]:
            return Move(f'This sentence with "{word}" does not settle it. I look at the next one.', line)
        known = f"The beginning of {self._name(title)} does not settle it: I still need {self.asked}."
        return Move(f'{known} I look up "{word}".', line)

    def _answer(self) -> Move | None:
        answer = self.question.answer
        verdict = normalize(answer) in ("yes", "no")
        if not self.order or not (verdict or normalize(answer) in normalize(self.read)):
            return None
        line = f"Answer: {answer}"
        if verdict or self.question.type == "comparison":
            facts = " ".join(f"{self._name(title)}: {quote(self._telling(title), answer)}" for title in self.order)
            return Move(f"{facts} {self._verdict()}", line)
        last, *before = reversed(self.order)
        holder = next((t for t in (last, *before) for f in self._facts(t) if normalize(answer) in normalize(f)), last)
        fact = max(self._facts(holder), key=lambda sentence: normalize(answer) in normalize(sentence))
        confirmed = f"{self._name(last)}: {quote(self._telling(last), self._name(holder))} This fits. "
        found = f"{self._name(holder)}: {quote(fact, answer)} So {self.asked} is {_ended(answer)}"
        return Move(found if holder == last else confirmed + found, line)

    def _comparison(self) -> str:
        names = [named_in(title, self.question.text) for title in self.order]
        compared = " and ".join(names) if all(names) else "two things"
        return f"The question compares {compared}, so I need what is said about each."

    def _verdict(self) -> str:
        """What decides a comparison: two years where it is about time, otherwise that the facts agree or not."""
        answer = self.question.answer
        if normalize(answer) == "yes":
            return "What is asked holds for both, so the answer is yes."
        if normalize(answer) == "no":
            return "What is asked does not hold for both, so the answer is no."
        if all(normalize(answer) in normalize(self._telling(title)) for title in self.order):
            return f"Both say {answer}, so this is the answer."
        words = frozenset(normalize(self.question.text).split())
        years = [_YEAR.search(self._telling(title)) for title in self.order]
        if len(years) == 2 and all(years) and (words & _EARLIER) != (words & _LATER):
            first, second = (int(year[0]) for year in years)
            chosen = self.order[(first > second) if words & _EARLIER else (first < second)]
            if first != second and (named_in(chosen, answer) or normalize(answer) in normalize(chosen)):
                low, high = sorted((first, second))
                sentence = f"{low} is before {high}" if words & _EARLIER else f"{high} is after {low}"
                return f"{sentence}, so the answer is {_ended(answer)}"
        return f"Comparing them, the answer is {_ended(answer)}"

    def _known(self, title: str) -> str:
        """What the paragraph read last has to say, in its own words."""
        if self.missed:
            return ""
        if self.at is None:
            return "This paragraph does not say it. " if self.read else ""
        facts = self._facts(self.at)
        leading = next((fact for fact in facts if named_in(title, fact)), None) or self._telling(self.at)
        return f"{self._name(self.at)}: {quote(leading, named_in(title, leading) or '')} "

    def _telling(self, title: str) -> str:
        """Of a paragraph's facts the one that shares most with the question, with a year where that decides."""
        words = frozenset(normalize(self.question.text).split())
        dated = bool(words & (_EARLIER | _LATER))

        def worth(fact: str) -> tuple[bool, int]:
            return dated and bool(_YEAR.search(fact)), len(words & frozenset(normalize(fact).split()))

        return max(self._facts(title), key=worth)

    def _queries(self, title: str) -> list[tuple[str, str]]:
        """Words that should lead to a paragraph, and where they are from: of those at hand the ones that occur in it."""
        there = frozenset(normalize(" ".join([title, *self.question.paragraphs[title]])).split())
        done = frozenset(normalize(" ".join(self.called)).split())
        queries = []
        for source, text in (("question", self.question.text), ("text", self.read)):
            words = [word for word in content_words(text) if normalize(word) in there - done]
            if source == "text":
                words = [word for word in words if normalize(word) in normalize(title).split()]
            if words:
                queries.append((source, " ".join(words[:_QUERY_WORDS])))
        return queries

    def _name(self, title: str) -> str:
        """What the expert has called a paragraph, or would."""
        return self.called.get(title) or named_in(title, f"{self.question.text} {self.read}") or title

    def _facts(self, title: str) -> list[str]:
        sentences = self.question.paragraphs[title]
        return [sentences[number] for one, number in self.question.facts if one == title and sentences[number]]

    def _first(self, title: str) -> str:
        return next(filter(None, self.question.paragraphs[title]))


def play_expert(env: HotpotQA, task: Task, *, max_steps: int = 60) -> Trajectory:
    """Plays one task with the expert.

    Args:
        env: The world.
        task: One of its tasks.
        max_steps: Actions after which the episode is given up.

    Returns:
        The episode in the `sad` format; its last line is the world's answer to the last action.
    """
    observation = env.reset(task)
    question = env.question(task)
    expert = HotpotExpert(question)
    lines, info, steps = [observation], {"won": False, "metrics": {"em": 0.0, "f1": 0.0}}, 0
    done = False
    while not done and steps < max_steps and (move := expert.act(observation)) is not None:
        observation, _, done, info = env.step(move.line.removeprefix("Action: "))
        steps += 1
        lines += [f"Reasoning: {move.reasoning}", move.line, observation]
    about = {"type": task.type, "level": question.level, "steps": steps, "model": "scripted expert"}
    return Trajectory(
        id=task.id,
        text="\n".join(lines) + "\n",
        format="sad",
        env="hotpotqa",
        task=task.goal,
        success=info["won"],
        extra=about | {"metrics": info["metrics"]},
    )


def _order(question: Question) -> list[str]:
    """The titles of the supporting facts, as a reasoner gets to them.

    In a comparison, as the question names them. Otherwise first what the question names, then what leads to the other, and
    what holds the answer last.
    """
    titles = list(dict.fromkeys(title for title, _ in question.facts))
    text = normalize(question.text)

    def place(title: str) -> tuple[bool, bool, bool, int]:
        name = named_in(title, question.text)
        position = text.find(normalize(name)) if name else 0
        if question.type == "comparison":
            return name is None, False, False, position
        own = " ".join(question.paragraphs[title])
        leads = any(named_in(other, own) for other in titles if other != title)
        return name is None, not leads, normalize(question.answer) in normalize(own), position

    return sorted(titles, key=place)


def _ended(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
