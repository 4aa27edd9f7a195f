"""The household as an environment: one engine for scenes from any source, and the one with our own scenes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike

from sad.agents.envs.household.game import Game
from sad.agents.envs.household.generator import SIZES, SPLITS, generate
from sad.agents.envs.household.goal import PREAMBLE, TASK_TYPES
from sad.agents.envs.household.wording import NOTHING_HAPPENS, answer, introduction
from sad.agents.envs.household.world import HELP, Action, World, legal
from sad.agents.envs.protocol import Step, Task
from sad.agents.envs.registry import register
from sad.errors import InputError


class HouseholdEnv:
    """Plays household games, whoever made their scenes.

    A shallow copy is an independent seat: `reset` binds fresh state, and games are never changed.

    Args:
        games: What can be played.
        loc_prefix: Begin the answer to `go to` with "You arrive at loc N.", as the original engine does and
            ReAct-style transcripts do not.
    """

    def __init__(self, games: Iterable[Game], *, loc_prefix: bool = False) -> None:
        self._games = {game.task.id: game for game in games}
        self._tasks = tuple(game.task for game in self._games.values())
        self._loc_prefix = loc_prefix
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

    def reset(self, task: Task) -> str:
        """Starts an episode.

        Returns:
            Two lines: what is in the room, and the task.

        Raises:
            InputError: `task` is not one of `tasks`.
        """
        game = self._games.get(task.id) if isinstance(task, Task) else None
        if game is None:
            got = f"{task.id!r}" if isinstance(task, Task) else f"a {type(task).__name__}"
            raise InputError("task", f"one of the {len(self._tasks)} tasks of this world", got, "Pick from env.tasks.")
        self._goal, self._world = game.goal, World(game.scene)
        self._commands = legal(self._world)
        self._done = False
        return f"{introduction(self._world)}\n{PREAMBLE}{game.task.goal}"

    def step(self, action: str) -> Step:
        """Takes an action, worded as in the grammar; anything else is answered "Nothing happens.".

        Placing is understood both as `put X in/on Y` and as `move X to Y`. `help` is answered, but is no
        admissible command, since it does nothing.

        Returns:
            The answer, with reward 1.0 and `done` as soon as the goal holds.

        Raises:
            InputError: No episode is running, or `action` is not text.
        """
        if self._world is None or self._done:
            got = "one that is over" if self._done else "none"
            raise InputError("env.step", "a running episode", got, "Call env.reset(task) first.")
        if not isinstance(action, str):
            raise InputError("action", "text", f"a {type(action).__name__}", "Pass a command such as 'look'.")
        command = canonical(action)
        taken = HELP if command == "help" else self._commands.get(command)
        if taken is None:
            observation, won = NOTHING_HAPPENS, False
        else:
            self._world.apply(taken)
            self._commands = legal(self._world)
            observation, won = answer(self._world, taken, self._loc_prefix), self._goal.holds(self._world)
        self._done = won
        info = {"won": won, "admissible_commands": self.admissible_commands}
        return Step(observation, float(won), won, info)


def canonical(command: str) -> str:
    """The wording of the grammar: without blanks around it, and `put X in/on Y` for `move X to Y`."""
    command = command.strip()
    if command.startswith("move "):
        thing, to, place = command[len("move ") :].rpartition(" to ")
        if to:
            return f"put {thing} in/on {place}"
    return command


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
        loc_prefix: See `HouseholdEnv`.

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
        super().__init__(games, loc_prefix=loc_prefix)


def _choose(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(name, "one of " + ", ".join(known), repr(value), "Pass one of these.")
