"""The scripted expert of HotPotQA. It knows a question's annotations, and finds the supporting facts before it answers."""

from __future__ import annotations

import ast
import re

from sad.envs.expert import Move, rollout_moves
from sad.envs.hotpotqa.data import Question
from sad.envs.hotpotqa.matching import normalize
from sad.envs.hotpotqa.phrases import content_words, find_name, question_subject, quote
from sad.envs.protocol import Env, Task
from sad.trajectories.trajectory import Trajectory

_NOT_FOUND = "Could not find "
_SIMILAR = re.compile(r" Similar: (\[.*\])\.$")
_YEAR = re.compile(r"\b1\d{3}\b|\b20\d{2}\b")
_EARLIER = frozenset("first earlier older oldest before earliest".split())
_LATER = frozenset("later younger recently latest newer youngest last".split())
_QUERY_WORDS = 8


class HotpotExpert:
    """Reads the supporting facts in the order of a reasoner, then answers.

    The annotations tell the expert which sentences are supporting facts, and the answer. It still searches only for names in
    the question, names in the text that it has read, titles that a search has listed, and words of the question. If none of
    these leads to a title, it searches for the title and says that this is a guess. It answers after it has read all
    supporting facts. The answer must occur in the text that it has read, unless it is `yes` or `no`.

    Args:
        question: The question with its annotations.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self.subject = question_subject(question.text)
        self.order = _reading_order(question)
        self.at: str | None = None  # the title that was found last
        self.read = ""  # the text of all paragraphs read so far
        self.queries: dict[str, str] = {}  # title -> the query that found it
        self.listed: list[str] = []  # titles that searches have listed
        self.tried: list[str] = []  # actions so far
        self.not_found = False  # whether the last action was a search without a result

    def act(self, observation: str) -> Move | None:
        """Returns the next move, or None to give up.

        Args:
            observation: The answer to the last move; for the first move, the question.
        """
        self._update(observation)
        for title in self.order:
            if unread := [sentence for sentence in self._facts(title) if sentence not in self.read]:
                move = self._search(title) if self.at != title else self._lookup(title, unread[0])
                self.tried.append(move.action)
                return move
        return self._answer()

    def _update(self, observation: str) -> None:
        if not self.tried:
            return
        self.not_found = observation.startswith(_NOT_FOUND)
        if self.not_found:
            if listed := _SIMILAR.search(observation):
                self.listed += ast.literal_eval(listed[1])
            return
        self.read += f" {observation}"
        if self.tried[-1].startswith("Search["):
            self.at = next((title for title in self.order if observation.startswith(self._first(title))), None)
            if self.at is not None:
                self.queries[self.at] = self.tried[-1][len("Search[") : -1]

    def _search(self, title: str) -> Move:
        missing = f"I still need {self.subject}." if self.at else f"I need {self.subject}."
        if len(self.order) > 1 and self.question.type == "comparison":
            missing = f"I need the same about {self._name(title)}." if self.at else self._comparison()
        known = self._known(title)
        for source, text in (("question", self.question.text), ("text", self.read)):
            name = find_name(title, text)
            if name and f"Search[{name}]" not in self.tried:
                if self.question.type == "comparison":
                    why = ""
                elif source == "question":
                    why = f" The question names {name}."
                else:
                    why = f" The text leads to {name}."
                return Move(f"{known}{missing}{why} I search {name}.", f"Search[{name}]")
        if title in self.listed:
            if self.not_found:
                reasoning = f"There is nothing under that name, but of the similar titles {title} fits."
            else:
                reasoning = f"{known}{missing} Of the titles listed before, {title} fits."
            return Move(f"{reasoning} I search {title}.", f"Search[{title}]")
        for source, words in self._word_queries(title):
            if f"Search[{words}]" not in self.tried:
                reasoning = f"{known}{missing} No title is given for it, so I search words of the {source}."
                return Move(reasoning, f"Search[{words}]")
        return Move(f"{known}{missing} Nothing names it. My guess is {title}, so I search that.", f"Search[{title}]")

    def _lookup(self, title: str, fact: str) -> Move:
        """Looks up a fact that the search did not show, with a word of the question or of another title."""
        sentences = self.question.paragraphs[title]
        words = content_words(" ".join([self.question.text, *(other for other in self.order if other != title)]))
        words = [word for word in words if word.lower() in fact.lower()] or content_words(fact) or [fact]

        def position(word: str) -> int:
            """Returns the number of sentences that a lookup of `word` shows up to the fact."""
            return sum(word.lower() in sentence.lower() for sentence in sentences[: sentences.index(fact) + 1])

        word = min(words, key=lambda word: (position(word), -len(word)))
        action = f"Lookup[{word}]"
        if action == self.tried[-1]:
            return Move(f'This sentence with "{word}" does not settle it. I look at the next one.', action)
        known = f"The beginning of {self._name(title)} does not settle it: I still need {self.subject}."
        return Move(f'{known} I look up "{word}".', action)

    def _answer(self) -> Move | None:
        answer = self.question.answer
        yes_or_no = normalize(answer) in ("yes", "no")
        if not self.order or not (yes_or_no or normalize(answer) in normalize(self.read)):
            return None
        action = f"Answer: {answer}"
        if yes_or_no or self.question.type == "comparison":
            facts = " ".join(f"{self._name(title)}: {quote(self._best_fact(title), answer)}" for title in self.order)
            return Move(f"{facts} {self._conclusion()}", action)
        last, *before = reversed(self.order)
        holder = next((t for t in (last, *before) for f in self._facts(t) if normalize(answer) in normalize(f)), last)
        fact = max(self._facts(holder), key=lambda sentence: normalize(answer) in normalize(sentence))
        confirmed = f"{self._name(last)}: {quote(self._best_fact(last), self._name(holder))} This fits. "
        found = f"{self._name(holder)}: {quote(fact, answer)} So {self.subject} is {_with_period(answer)}"
        return Move(found if holder == last else confirmed + found, action)

    def _comparison(self) -> str:
        names = [find_name(title, self.question.text) for title in self.order]
        compared = " and ".join(names) if all(names) else "two things"
        return f"The question compares {compared}, so I need what is said about each."

    def _conclusion(self) -> str:
        """Returns the last sentence of a comparison. It compares two years if the question is about time."""
        answer = self.question.answer
        if normalize(answer) == "yes":
            return "What is asked holds for both, so the answer is yes."
        if normalize(answer) == "no":
            return "What is asked does not hold for both, so the answer is no."
        if all(normalize(answer) in normalize(self._best_fact(title)) for title in self.order):
            return f"Both say {answer}, so this is the answer."
        words = frozenset(normalize(self.question.text).split())
        years = [_YEAR.search(self._best_fact(title)) for title in self.order]
        if len(years) == 2 and all(years) and (words & _EARLIER) != (words & _LATER):
            first, second = (int(year[0]) for year in years)
            chosen = self.order[(first > second) if words & _EARLIER else (first < second)]
            if first != second and (find_name(chosen, answer) or normalize(answer) in normalize(chosen)):
                low, high = sorted((first, second))
                sentence = f"{low} is before {high}" if words & _EARLIER else f"{high} is after {low}"
                return f"{sentence}, so the answer is {_with_period(answer)}"
        return f"Comparing them, the answer is {_with_period(answer)}"

    def _known(self, title: str) -> str:
        """Returns a quote from the paragraph that was read last."""
        if self.not_found:
            return ""
        if self.at is None:
            return "This paragraph does not say it. " if self.read else ""
        facts = self._facts(self.at)
        leading = next((fact for fact in facts if find_name(title, fact)), None) or self._best_fact(self.at)
        return f"{self._name(self.at)}: {quote(leading, find_name(title, leading) or '')} "

    def _best_fact(self, title: str) -> str:
        """Returns the supporting fact that shares most words with the question.

        If the question compares dates, facts with a year come first.
        """
        words = frozenset(normalize(self.question.text).split())
        dated = bool(words & (_EARLIER | _LATER))

        def relevance(fact: str) -> tuple[bool, int]:
            return dated and bool(_YEAR.search(fact)), len(words & frozenset(normalize(fact).split()))

        return max(self._facts(title), key=relevance)

    def _word_queries(self, title: str) -> list[tuple[str, str]]:
        """Returns pairs (source, query).

        The queries are the words of the question that occur in the paragraph, and the words read so far that occur in its
        title.
        """
        available = frozenset(normalize(" ".join([title, *self.question.paragraphs[title]])).split())
        done = frozenset(normalize(" ".join(self.queries)).split())
        queries = []
        for source, text in (("question", self.question.text), ("text", self.read)):
            words = [word for word in content_words(text) if normalize(word) in available - done]
            if source == "text":
                words = [word for word in words if normalize(word) in normalize(title).split()]
            if words:
                queries.append((source, " ".join(words[:_QUERY_WORDS])))
        return queries

    def _name(self, title: str) -> str:
        """Returns the name of a paragraph for the reasoning."""
        return self.queries.get(title) or find_name(title, f"{self.question.text} {self.read}") or title

    def _facts(self, title: str) -> list[str]:
        sentences = self.question.paragraphs[title]
        return [sentences[number] for one, number in self.question.facts if one == title and sentences[number]]

    def _first(self, title: str) -> str:
        return next(filter(None, self.question.paragraphs[title]))


def rollout_expert(env: Env, task: Task, *, max_steps: int = 60) -> Trajectory:
    """Runs one episode with the expert.

    Args:
        env: A HotPotQA environment.
        task: One of its tasks.
        max_steps: Maximum number of actions.

    Returns:
        The episode in the `sad` format. Its last line is the answer to the last action.
    """
    observation = env.reset(task)
    question = env.question(task)
    return rollout_moves(
        env,
        task,
        observation,
        HotpotExpert(question).act,
        env_name="hotpotqa",
        max_steps=max_steps,
        extra={"level": question.level},
        metrics={"em": 0.0, "f1": 0.0},
    )


def _reading_order(question: Question) -> list[str]:
    """Returns the titles of the supporting facts in the order of a reasoner.

    A comparison follows the order of the names in the question. Other questions begin with the titles that the question
    names, then those that lead to another title, then the others. Titles whose text has the answer come last.
    """
    titles = list(dict.fromkeys(title for title, _ in question.facts))
    text = normalize(question.text)

    def position(title: str) -> tuple[bool, bool, bool, int]:
        name = find_name(title, question.text)
        at = text.find(normalize(name)) if name else 0
        if question.type == "comparison":
            return name is None, False, False, at
        own = " ".join(question.paragraphs[title])
        leads = any(find_name(other, own) for other in titles if other != title)
        return name is None, not leads, normalize(question.answer) in normalize(own), at

    return sorted(titles, key=position)


def _with_period(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
