"""The scripted expert of the household. It sees only the text that an agent sees."""

from __future__ import annotations

from collections.abc import Sequence

from sad.envs.expert import Move, rollout_moves
from sad.envs.household.catalog import CAN_CONTAIN, USUAL_PLACES
from sad.envs.household.game import CLEAN, COOL, HEAT, LIGHT, REACT_TEXTS, SIMPLE, TWO
from sad.envs.household.text import NOTHING_HAPPENS, kind_of, parse_goal, parse_receptacles, parse_view
from sad.envs.protocol import Env, Task
from sad.trajectories.trajectory import Trajectory

# The verb, the new state of the object, and the receptacle kinds that can do it, in order of preference.
_TREATMENT = {
    CLEAN: ("clean", "clean", ("sinkbasin", "sink")),
    HEAT: ("heat", "hot", ("microwave",)),
    COOL: ("cool", "cool", ("fridge",)),
}
# Receptacle kinds with the preposition "in". The others have "on".
_IN = frozenset("bathtubbasin cabinet drawer fridge garbagecan laundryhamper microwave safe sink sinkbasin".split())


class HouseholdExpert:
    """Solves household tasks from observations alone.

    The expert looks for an object first where its kind is usually found, then where its kind can be, then everywhere.
    Among equal places, it follows the order of the first observation. It remembers the objects that it has seen. The same
    observations always lead to the same moves.

    Args:
        first_observation: The room description and the task, from `env.reset`.
        put_command: The command of the game that places an object, with `{object}` and `{receptacle}`.

    Raises:
        InputError: The task matches none of the household's goal templates.
    """

    def __init__(self, first_observation: str, put_command: str = REACT_TEXTS.put) -> None:
        self.put_command = put_command
        self.goal = parse_goal(first_observation)
        self.places = parse_receptacles(first_observation)
        self.at: str | None = None
        self.held: str | None = None
        self.treated = False
        self.seen: dict[str, str] = {}  # object -> the place where it was last seen
        self.searched: dict[str, bool] = {}  # place -> whether it contained anything
        self.closed: set[str] = set()
        self.refused: set[str] = set()  # commands with the answer "Nothing happens."
        self.news = ""  # the result of the last action, if the reasoning should mention it
        self._last = ""

    def act(self, observation: str) -> Move:
        """Returns the next move.

        Args:
            observation: The answer to the last move; for the first move, the first observation.
        """
        self._update(observation)
        move = self._decide()
        self._last = move.action
        return move

    def _update(self, observation: str) -> None:
        verb, _, rest = self._last.partition(" ")
        self.news = ""
        if observation.strip() == NOTHING_HAPPENS:
            self.refused.add(self._last)
            if verb in ("examine", "open"):
                self.searched.setdefault(rest, False)  # out of reach, so there is nothing to find
            return
        if verb == "take":
            self.held = rest.partition(" from ")[0]
            del self.seen[self.held]
        elif verb in ("put", "move"):
            self.news = f"{self.held} is {where(self.at)} now."
            self.seen[self.held], self.held, self.treated = self.at, None, False
        elif verb in ("clean", "heat", "cool"):
            self.treated = True
        if self._last and (view := parse_view(observation)):
            self.at = view.name
            if view.contents is None:
                self.closed.add(view.name)
            else:
                self.closed.discard(view.name)
                self.searched[view.name] = bool(view.contents)
                self.seen = {obj: place for obj, place in self.seen.items() if place != view.name}
                self.seen.update(dict.fromkeys(view.contents, view.name))

    def _decide(self) -> Move:
        if self.held is None:
            return self._fetch()
        if self.goal.type == LIGHT:
            return self._light()
        if self.goal.type in _TREATMENT and not self.treated:
            return self._treat()
        return self._deliver()

    def _fetch(self) -> Move:
        """Finds an object and takes it."""
        delivered_to = self._destination() if self.goal.type in (SIMPLE, TWO) else None
        found = [o for o, p in self.seen.items() if kind_of(o) == self.goal.object and p != delivered_to]
        found.sort(key=lambda obj: self.seen[obj] != self.at)  # objects within reach first
        if not found:
            return self._search(self.goal.object, self._need(), self._excluded())
        obj, place = found[0], self.seen[found[0]]
        if place == self.at:
            return Move(f"I see {obj} {where(place)}. I take it to {self._plan()}.", f"take {obj} from {place}")
        fact = self.news or f"I need {self._need()}."
        return self._go(place, f"{fact} I saw {obj} {where(place)}, so I go to {place}.")

    def _search(self, kind: str, need: str, excluded: str) -> Move:
        """Looks for an object of this kind in the next place."""
        if self.at in self.closed and self.at not in self.searched and f"open {self.at}" not in self.refused:
            return Move(f"{self.at} is closed. I need {indefinite(kind)}, so I open {self.at}.", f"open {self.at}")
        place = self._next_place(kind, excluded)
        if place is None:
            return Move(f"I need {need}, but I have looked everywhere. I look around again.", "look")
        if self.at is None:
            here = {kind_of(p) for p in self.places} - {excluded}
            usual = ", ".join(place_kind for place_kind in self._likely_places(kind) if place_kind in here)
            hint = f" Usual places: {usual}." if usual else ""
            return self._go(place, f"I need {need}.{hint} I look {where(place)} first.")
        fact = self.news
        if not fact and self._last.startswith("take "):
            fact = f"I hold {self.held}."
        if not fact:
            fact = f"I see {f'no {kind}' if self.searched.get(self.at) else 'nothing'} {where(self.at)}."
        return self._go(place, f"{fact} I need {need}{self._why_here(kind, place)}, so I look {where(place)} next.")

    def _usual_places(self, kind: str) -> Sequence[str]:
        """Returns the receptacle kinds where an object of this kind can be expected, the likeliest first."""
        return USUAL_PLACES.get(kind, ())

    def _likely_places(self, kind: str) -> Sequence[str]:
        """Returns the part of `_usual_places` that the first line of reasoning names."""
        return self._usual_places(kind)

    def _why_here(self, kind: str, place: str) -> str:
        """Returns a reason to look at this place, as text before ", so I look ..."; empty if there is none."""
        return ""

    def _next_place(self, kind: str, excluded: str) -> str | None:
        left = [p for p in self.places if p not in self.searched and f"examine {p}" not in self.refused]
        usual = [place_kind for place_kind in self._usual_places(kind) if place_kind != excluded]
        likely = [p for place_kind in usual for p in left if kind_of(p) == place_kind]
        possible = [p for p in left if kind in CAN_CONTAIN.get(kind_of(p), ()) and kind_of(p) != excluded]
        return next(iter(likely or possible or left), None)

    def _treat(self) -> Move:
        """Cleans, heats or cools the held object."""
        verb, state, kinds = _TREATMENT[self.goal.type]
        tools = [p for kind in kinds for p in self.places if kind_of(p) == kind]
        tools = [p for p in tools if f"{verb} {self.held} with {p}" not in self.refused]
        if not tools:
            return Move(f"I hold {self.held}, but I find nothing to {verb} it with. I look around.", "look")
        if self.at in tools:
            reasoning = f"I hold {self.held} at {self.at}. I {verb} it here, then it goes {where(self.goal.target)}."
            return Move(reasoning, f"{verb} {self.held} with {self.at}")
        return self._go(tools[0], f"I hold {self.held}. It must be {state}, so I go to {tools[0]}.")

    def _deliver(self) -> Move:
        """Carries the held object to the target and puts it there."""
        place = self._destination()
        state = f"{_TREATMENT[self.goal.type][1]} " if self.treated else ""
        if place is None:
            return Move(f"I hold {self.held}, but no {self.goal.target} will take it. I look around.", "look")
        if self.at != place:
            fact = f"{self.held} is {state.strip()} now." if state else f"I hold {self.held}."
            subject = f"Two {self.goal.object}" if self.goal.type == TWO else "It"
            return self._go(place, f"{fact} {subject} must be {where(self.goal.target)}, so I go to {place}.")
        if place in self.closed:
            return Move(f"{place} is closed. I open it to put {state}{self.held} in.", f"open {place}")
        return Move(f"I am at {place} with {state}{self.held}. I put it {where(place)}.", self._put(place))

    def _put(self, place: str) -> str:
        return self.put_command.format(object=self.held, receptacle=place)

    def _light(self) -> Move:
        """Carries the held object to a lamp and turns the lamp on."""
        lamps = [o for o in self.seen if kind_of(o) == self.goal.target and f"use {o}" not in self.refused]
        lamps.sort(key=lambda lamp: self.seen[lamp] != self.at)  # lamps within reach first
        if not lamps:
            return self._search(self.goal.target, f"{indefinite(self.goal.target)} to look at it", "")
        lamp, place = lamps[0], self.seen[lamps[0]]
        if place == self.at:
            reasoning = f"I hold {self.held} and see {lamp} {where(place)}. I use it to look at {self.held}."
            return Move(reasoning, f"use {lamp}")
        return self._go(place, f"I hold {self.held}. I saw {lamp} {where(place)}, so I go to {place}.")

    def _go(self, place: str, reasoning: str) -> Move:
        """Goes to a place, or examines it if `go to` had no effect because the place is already within reach."""
        if self._last == f"go to {place}":
            return Move(f"Nothing happens, so {place} is within reach. I examine {place}.", f"examine {place}")
        return Move(reasoning, f"go to {place}")

    def _destination(self) -> str | None:
        """Returns the target receptacle: the first of its kind that has not refused the object."""
        fitting = [p for p in self.places if kind_of(p) == self.goal.target]
        return next((p for p in fitting if self._put(p) not in self.refused), None)

    def _excluded(self) -> str:
        return self.goal.target if self.goal.type in (SIMPLE, TWO) else ""

    def _need(self) -> str:
        """Returns a phrase for the object that is missing and its purpose."""
        kind, place = self.goal.object, self.goal.target
        if self.goal.type == LIGHT:
            return f"{indefinite(kind)} to look at under the {place}"
        if self.goal.type in _TREATMENT:
            return f"{indefinite(kind)} to {_TREATMENT[self.goal.type][0]} for {place}"
        if self.goal.type == TWO:
            return f"{'one more' if self._destination() in self.seen.values() else 'two'} {kind} for {place}"
        return f"{indefinite(kind)} for {place}"

    def _plan(self) -> str:
        """Returns a phrase for the rest of the task, once the object is held."""
        if self.goal.type == LIGHT:
            return f"look at it under the {self.goal.target}"
        put = f"put it {where(self.goal.target)}"
        return f"{_TREATMENT[self.goal.type][0]} it and {put}" if self.goal.type in _TREATMENT else put


def rollout_expert(
    env: Env,
    task: Task,
    *,
    max_steps: int = 60,
    expert: type[HouseholdExpert] = HouseholdExpert,
    env_name: str = "household",
) -> Trajectory:
    """Runs one episode with the expert.

    Args:
        env: A household environment.
        task: One of its tasks.
        max_steps: Maximum number of actions.
        expert: The class of the expert.
        env_name: The `env` of the trajectory.

    Returns:
        The episode in the `sad` format. Its last line is the answer to the last action.
    """
    observation = env.reset(task)
    agent = expert(observation, getattr(env, "put_command", REACT_TEXTS.put))
    return rollout_moves(env, task, observation, agent.act, env_name=env_name, max_steps=max_steps)


def where(place: str) -> str:
    """Returns a place with its preposition: `in cabinet 1`, `on shelf`."""
    return f"{'in' if place.rstrip('0123456789 ') in _IN else 'on'} {place}"


def indefinite(kind: str) -> str:
    """Returns a kind with its indefinite article: `a mug`, `an egg`."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
