"""The household as an environment: one engine for scenes from any source, and the one with our own scenes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike

from sad.envs.household.dialect import NUMBERED, PLAIN
from sad.envs.household.expert import play_expert
from sad.envs.household.game import Game
from sad.envs.household.generator import SIZES, SPLITS, generate
from sad.envs.household.goal import PREAMBLE, TASK_TYPES
from sad.envs.household.wording import NOTHING_HAPPENS, answer, introduction
from sad.envs.household.world import HELP, Action, World, legal
from sad.envs.protocol import Step, Task
from sad.envs.registry import register
from sad.errors import InputError


class HouseholdEnv:
    """Plays household games, whoever made their scenes.

    Placing is understood both as `put X in/on Y` and as `move X to Y`. `help` is answered, but is no admissible command,
    since it does nothing. A shallow copy is an independent seat: `reset` binds fresh state, and games are never changed.

    Args:
        games: What can be played.
    """

    expert = staticmethod(play_expert)

    def __init__(self, games: Iterable[Game]) -> None:
        self._games = {game.task.id: game for game in games}
        self._tasks = tuple(game.task for game in self._games.values())
        self._dialect = PLAIN
        self._world: World | None = None
        self._commands: dict[str, Action] = {}
        self._done = False

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks on offer."""
        return self._tasks

    @property
    def admissible_commands(self) -> list[str]:
        """Every command that would do something now, sorted."""
        return sorted(self._commands)

    @property
    def placing(self) -> str:
        """How the running game wants a thing to be placed: a command with `{thing}` and `{place}`."""
        return self._dialect.place

    def reset(self, task: Task) -> str:
        """Starts an episode.

        Returns:
            Two lines: what is in the room, and the task.

        Raises:
            InputError: `task` is not one of `tasks`.
        """
        game = self._game(task.id) if isinstance(task, Task) else None
        if game is None:
            raise no_such_task(task, self._tasks)
        self._goal, self._world, self._dialect = game.goal, World(game.scene), game.dialect
        self._commands = legal(self._world, self._dialect)
        self._done = False
        return f"{introduction(self._world)}\n{PREAMBLE}{game.task.goal}"

    def step(self, action: str) -> Step:
        """Takes an action, worded as in the grammar; anything else is answered "Nothing happens.".

        Returns:
            The answer, with reward 1.0 and `done` as soon as the goal holds; `info["valid"]` says whether the action
            was understood.

        Raises:
            InputError: No episode is running, or `action` is not text.
        """
        if self._world is None or self._done:
            got = "one that is over" if self._done else "none"
            raise InputError("env.step", "a running episode", got, "Call env.reset(task) first.")
        if not isinstance(action, str):
            raise InputError("action", "text", f"a {type(action).__name__}", "Pass a command such as 'look'.")
        taken = self._understood(action.strip())
        if taken is None:
            observation, won = NOTHING_HAPPENS, False
        else:
            self._world.apply(taken)
            self._commands = legal(self._world, self._dialect)
            observation, won = answer(self._world, taken, self._dialect), self._goal.holds(self._world)
        self._done = won
        info = {"won": won, "admissible_commands": self.admissible_commands, "valid": taken is not None}
        return Step(observation, float(won), won, info)

    def _game(self, task_id: str) -> Game | None:
        """The game of a task, if there is one."""
        return self._games.get(task_id)

    def _understood(self, command: str) -> Action | None:
        """The action that a command stands for now, if any."""
        if command == "help":
            return HELP
        if command.startswith("move "):
            thing, to, place = command[len("move ") :].rpartition(" to ")
            if to:
                command = self._dialect.place.format(thing=thing, place=place)
        return self._commands.get(command)


def no_such_task(task: object, tasks: Sequence[Task]) -> InputError:
    """The error for a task that is not one of a world's."""
    got = f"{task.id!r}" if isinstance(task, Task) else f"a {type(task).__name__}"
    return InputError("task", f"one of the {len(tasks)} tasks of this world", got, "Pick from env.tasks.")


@register("household")
class Household(HouseholdEnv):
    """The six ALFWorld task types in kitchens, bathrooms, bedrooms and living rooms of our own making.

    Args:
        root: Must be None: nothing is read from disk.
        split: `"train"` (default) or `"valid"`; no scene is in both.
        seed: Of the scenes.
        tasks: How many.
        size: `"full"`, rooms as in ALFWorld, or `"small"`, 4 to 6 receptacles and few things.
        types: The task types, in turn; None takes all six.
        loc_prefix: Begin the answer to `go to` with "You arrive at loc N.", as the original engine does and
            ReAct-style transcripts do not.

    Raises:
        InputError: An argument is not what is listed here.
    """

    def __init__(
        self,
        root: str | PathLike[str] | None = None,
        split: str | None = None,
        seed: int = 0,
        *,
        tasks: int = 500,
        size: str = "full",
        types: Sequence[str] | None = None,
        loc_prefix: bool = False,
    ) -> None:
        if root is not None:
            raise InputError("root", "None for 'household'", repr(root), "Leave it out: the scenes are generated.")
        _choose("split", split := split or "train", SPLITS)
        _choose("size", size, SIZES)
        for task_type in (types := TASK_TYPES if types is None else types):
            _choose("types", task_type, TASK_TYPES)
        if not types or isinstance(tasks, bool) or not isinstance(tasks, int) or tasks < 1:
            name, got = ("tasks", repr(tasks)) if types else ("types", "none")
            raise InputError(name, "at least one", got, "Ask for one or more.")
        games = (generate(types[index % len(types)], index, split=split, seed=seed, size=size) for index in range(tasks))
        super().__init__(game._replace(dialect=NUMBERED) if loc_prefix else game for game in games)


def _choose(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(name, "one of " + ", ".join(known), repr(value), "Pass one of these.")
