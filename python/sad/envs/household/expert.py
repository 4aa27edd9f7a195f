"""A scripted expert that sees what an agent sees, and says why it does what it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sad.envs.household.catalog import HOLDS, HOMES
from sad.envs.household.dialect import PLAIN
from sad.envs.household.goal import CLEAN, COOL, HEAT, LIGHT, SIMPLE, TWO
from sad.envs.household.reading import goal_of, kind_of, places_of, sight_of
from sad.envs.household.wording import NOTHING_HAPPENS
from sad.envs.protocol import Env, Task
from sad.trajectories.trajectory import Trajectory

# verb, what the thing is afterwards, and the kinds of receptacle that do it, best first
_TREATMENT = {
    CLEAN: ("clean", "clean", ("sinkbasin", "sink")),
    HEAT: ("heat", "hot", ("microwave",)),
    COOL: ("cool", "cool", ("fridge",)),
}
_IN = frozenset("bathtubbasin cabinet drawer fridge garbagecan laundryhamper microwave safe sink sinkbasin".split())


class Move(NamedTuple):
    """One turn of the expert.

    Attributes:
        reasoning: One line: the sub-goal, and the fact that decides.
        action: The command that follows from it.
    """

    reasoning: str
    action: str


class HouseholdExpert:
    """Solves household tasks from observations alone.

    It searches where things of the wanted kind are usually found, the likeliest places first, then where they can be,
    then everywhere; among equals in the order of the first observation. It remembers what it has seen. What it does
    depends on nothing but what it was told, so the same episode always gets the same lines.

    Args:
        first_observation: The answer to `reset`: what is in the room, and the task.
        placing: How the game wants a thing to be placed: a command with `{thing}` and `{place}`.

    Raises:
        InputError: The task is not worded as the household words them.
    """

    def __init__(self, first_observation: str, placing: str = PLAIN.place) -> None:
        self.placing = placing
        self.goal = goal_of(first_observation)
        self.places = places_of(first_observation)
        self.at: str | None = None
        self.held: str | None = None
        self.treated = False
        self.seen: dict[str, str] = {}  # thing to the place where it was last seen
        self.searched: dict[str, bool] = {}  # place to whether there was anything
        self.closed: set[str] = set()
        self.refused: set[str] = set()  # commands that were answered "Nothing happens."
        self.news = ""  # what the last action brought about, if it is worth a word
        self._last = ""

    def act(self, observation: str) -> Move:
        """The next move, given the answer to the last one (at first: the first observation)."""
        self._learn(observation)
        move = self._decide()
        self._last = move.action
        return move

    def _learn(self, observation: str) -> None:
        verb, _, rest = self._last.partition(" ")
        self.news = ""
        if observation.strip() == NOTHING_HAPPENS:
            self.refused.add(self._last)
            if verb in ("examine", "open"):
                self.searched.setdefault(rest, False)  # out of reach: nothing to be found there
            return
        if verb == "take":
            self.held = rest.partition(" from ")[0]
            del self.seen[self.held]
        elif verb in ("put", "move"):
            self.news = f"{self.held} is {where(self.at)} now."
            self.seen[self.held], self.held, self.treated = self.at, None, False
        elif verb in ("clean", "heat", "cool"):
            self.treated = True
        if self._last and (sight := sight_of(observation)):
            self.at = sight.place
            if sight.things is None:
                self.closed.add(sight.place)
            else:
                self.closed.discard(sight.place)
                self.searched[sight.place] = bool(sight.things)
                self.seen = {thing: place for thing, place in self.seen.items() if place != sight.place}
                self.seen.update(dict.fromkeys(sight.things, sight.place))

    def _decide(self) -> Move:
        if self.held is None:
            return self._fetch()
        if self.goal.type == LIGHT:
            return self._light()
        if self.goal.type in _TREATMENT and not self.treated:
            return self._treat()
        return self._deliver()

    def _fetch(self) -> Move:
        """Finds the thing and takes it."""
        settled = self._destination() if self.goal.type in (SIMPLE, TWO) else None
        found = [t for t, p in self.seen.items() if kind_of(t) == self.goal.thing and p != settled]
        found.sort(key=lambda thing: self.seen[thing] != self.at)  # what is in reach first
        if not found:
            return self._search(self.goal.thing, self._need(), self._excluded())
        thing, place = found[0], self.seen[found[0]]
        if place == self.at:
            return Move(f"I see {thing} {where(place)}. I take it to {self._plan()}.", f"take {thing} from {place}")
        more = self.news or f"I need {self._need()}."
        return self._go(place, f"{more} I saw {thing} {where(place)}, so I go to {place}.")

    def _search(self, kind: str, need: str, excluded: str) -> Move:
        """Looks for a kind of thing in the next place."""
        if self.at in self.closed and self.at not in self.searched and f"open {self.at}" not in self.refused:
            return Move(f"{self.at} is closed. I need {indefinite(kind)}, so I open {self.at}.", f"open {self.at}")
        place = self._next_place(kind, excluded)
        if place is None:
            return Move(f"I need {need}, but I have looked everywhere. I look around again.", "look")
        if self.at is None:
            here = {kind_of(p) for p in self.places} - {excluded}
            usual = ", ".join(home for home in self._usual(kind) if home in here)
            habit = f" Usual places: {usual}." if usual else ""
            return self._go(place, f"I need {need}.{habit} I look {where(place)} first.")
        fact = self.news
        if not fact and self._last.startswith("take "):
            fact = f"I hold {self.held}."
        if not fact:
            fact = f"I see {f'no {kind}' if self.searched.get(self.at) else 'nothing'} {where(self.at)}."
        return self._go(place, f"{fact} I need {need}{self._chance(kind, place)}, so I look {where(place)} next.")

    def _homes(self, kind: str) -> Sequence[str]:
        """Kinds of places to look for a kind of thing in, the likeliest first."""
        return HOMES.get(kind, ())

    def _usual(self, kind: str) -> Sequence[str]:
        """Those of them that are worth naming at the start."""
        return self._homes(kind)

    def _chance(self, kind: str, place: str) -> str:
        """Why to look at this place, as a clause that goes before ", so I look there"; empty where nothing is to be said."""
        return ""

    def _next_place(self, kind: str, excluded: str) -> str | None:
        left = [p for p in self.places if p not in self.searched and f"examine {p}" not in self.refused]
        homes = [home for home in self._homes(kind) if home != excluded]
        likely = [p for home in homes for p in left if kind_of(p) == home]
        possible = [p for p in left if kind in HOLDS.get(kind_of(p), ()) and kind_of(p) != excluded]
        return next(iter(likely or possible or left), None)

    def _treat(self) -> Move:
        """Makes what is held clean, hot or cool."""
        verb, state, kinds = _TREATMENT[self.goal.type]
        tools = [p for kind in kinds for p in self.places if kind_of(p) == kind]
        tools = [p for p in tools if f"{verb} {self.held} with {p}" not in self.refused]
        if not tools:
            return Move(f"I hold {self.held}, but I find nothing to {verb} it with. I look around.", "look")
        if self.at in tools:
            reasoning = f"I hold {self.held} at {self.at}. I {verb} it here, then it goes {where(self.goal.place)}."
            return Move(reasoning, f"{verb} {self.held} with {self.at}")
        return self._go(tools[0], f"I hold {self.held}. It must be {state}, so I go to {tools[0]}.")

    def _deliver(self) -> Move:
        """Takes what is held to where it belongs."""
        place = self._destination()
        state = f"{_TREATMENT[self.goal.type][1]} " if self.treated else ""
        if place is None:
            return Move(f"I hold {self.held}, but no {self.goal.place} will take it. I look around.", "look")
        if self.at != place:
            fact = f"{self.held} is {state.strip()} now." if state else f"I hold {self.held}."
            subject = f"Two {self.goal.thing}" if self.goal.type == TWO else "It"
            return self._go(place, f"{fact} {subject} must be {where(self.goal.place)}, so I go to {place}.")
        if place in self.closed:
            return Move(f"{place} is closed. I open it to put {state}{self.held} in.", f"open {place}")
        return Move(f"I am at {place} with {state}{self.held}. I put it {where(place)}.", self._put(place))

    def _put(self, place: str) -> str:
        return self.placing.format(thing=self.held, place=place)

    def _light(self) -> Move:
        """Takes what is held to a lamp and turns it on."""
        lamps = [t for t in self.seen if kind_of(t) == self.goal.place and f"use {t}" not in self.refused]
        lamps.sort(key=lambda lamp: self.seen[lamp] != self.at)  # what is in reach first
        if not lamps:
            return self._search(self.goal.place, f"{indefinite(self.goal.place)} to look at it", "")
        lamp, place = lamps[0], self.seen[lamps[0]]
        if place == self.at:
            reasoning = f"I hold {self.held} and see {lamp} {where(place)}. I use it to look at {self.held}."
            return Move(reasoning, f"use {lamp}")
        return self._go(place, f"I hold {self.held}. I saw {lamp} {where(place)}, so I go to {place}.")

    def _go(self, place: str, reasoning: str) -> Move:
        """Goes somewhere, or examines it if going there does nothing: then it is within reach already."""
        if self._last == f"go to {place}":
            return Move(f"Nothing happens, so {place} is within reach. I examine {place}.", f"examine {place}")
        return Move(reasoning, f"go to {place}")

    def _destination(self) -> str | None:
        """The receptacle the goal is served at: the first of its kind that has not refused."""
        fitting = [p for p in self.places if kind_of(p) == self.goal.place]
        return next((p for p in fitting if self._put(p) not in self.refused), None)

    def _excluded(self) -> str:
        return self.goal.place if self.goal.type in (SIMPLE, TWO) else ""

    def _need(self) -> str:
        """What is looked for, and what for."""
        kind, place = self.goal.thing, self.goal.place
        if self.goal.type == LIGHT:
            return f"{indefinite(kind)} to look at under the {place}"
        if self.goal.type in _TREATMENT:
            return f"{indefinite(kind)} to {_TREATMENT[self.goal.type][0]} for {place}"
        if self.goal.type == TWO:
            return f"{'one more' if self._destination() in self.seen.values() else 'two'} {kind} for {place}"
        return f"{indefinite(kind)} for {place}"

    def _plan(self) -> str:
        """What becomes of the thing: the rest of the task, in words."""
        if self.goal.type == LIGHT:
            return f"look at it under the {self.goal.place}"
        put = f"put it {where(self.goal.place)}"
        return f"{_TREATMENT[self.goal.type][0]} it and {put}" if self.goal.type in _TREATMENT else put


def play_expert(
    env: Env,
    task: Task,
    *,
    max_steps: int = 60,
    expert: type[HouseholdExpert] = HouseholdExpert,
    world: str = "household",
) -> Trajectory:
    """Plays one task with the expert.

    Args:
        env: A household.
        task: One of its tasks.
        max_steps: Actions after which the episode is given up.
        expert: Who plays.
        world: What the record calls the world.

    Returns:
        The episode in the `sad` format; its last line is the answer to the last action.
    """
    observation = env.reset(task)
    agent = expert(observation, getattr(env, "placing", PLAIN.place))
    lines, won, steps = [observation], False, 0
    while not won and steps < max_steps:
        move = agent.act(observation)
        answer = env.step(move.action)
        observation, won, steps = answer.observation, answer.info["won"], steps + 1
        lines += [f"Reasoning: {move.reasoning}", f"Action: {move.action}", observation]
    return Trajectory(
        id=task.id,
        text="\n".join(lines) + "\n",
        format="sad",
        env=world,
        task=task.goal,
        success=won,
        extra={"type": task.type, "steps": steps, "model": "scripted expert"},
    )


def where(place: str) -> str:
    """`in cabinet 1`, `on shelf`."""
    return f"{'in' if place.rstrip('0123456789 ') in _IN else 'on'} {place}"


def indefinite(kind: str) -> str:
    """`a mug`, `an egg`."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
