"""The household environment: `HouseholdEnv` runs given games, `Household` generates its games."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike

from sad.envs.checks import check_choice, check_step, check_task_count, unknown_task
from sad.envs.household.expert import rollout_expert
from sad.envs.household.game import ALFWORLD_TEXTS, GOAL_PREFIX, REACT_TEXTS, TASK_TYPES, Game
from sad.envs.household.generator import SIZES, SPLITS, generate
from sad.envs.household.state import HELP, Action, HouseholdState, admissible_actions
from sad.envs.household.text import NOTHING_HAPPENS, format_answer, format_room
from sad.envs.protocol import Step, Task
from sad.envs.registry import register
from sad.errors import InputError


class HouseholdEnv:
    """Runs household games from any source.

    To place an object, an agent can use `put X in/on Y` or `move X to Y`. `help` gets an answer, but it has no effect and
    is not an admissible command. A shallow copy runs its own episode: `reset` creates new state, and games never change.

    Args:
        games: The games, one per task.
    """

    expert = staticmethod(rollout_expert)

    def __init__(self, games: Iterable[Game]) -> None:
        self._games = {game.task.id: game for game in games}
        self._tasks = tuple(game.task for game in self._games.values())
        self._texts = REACT_TEXTS
        self._state: HouseholdState | None = None
        self._commands: dict[str, Action] = {}
        self._done = False

    @property
    def tasks(self) -> Sequence[Task]:
        """All tasks."""
        return self._tasks

    @property
    def admissible_commands(self) -> list[str]:
        """The commands that have an effect in the current state, sorted."""
        return sorted(self._commands)

    @property
    def put_command(self) -> str:
        """The command of the current game that places an object, with the fields `{object}` and `{receptacle}`."""
        return self._texts.put

    def reset(self, task: Task) -> str:
        """Starts an episode.

        Returns:
            Two lines: the room description and the task.

        Raises:
            InputError: `task` is not one of `tasks`.
        """
        game = self._game(task.id) if isinstance(task, Task) else None
        if game is None:
            raise unknown_task(task, self._tasks)
        self._goal, self._state, self._texts = game.goal, HouseholdState(game.scene), game.texts
        self._commands = admissible_actions(self._state, self._texts)
        self._done = False
        return f"{format_room(self._state)}\n{GOAL_PREFIX}{game.task.goal}"

    def step(self, action: str) -> Step:
        """Runs one command. A command that is not understood has no effect and gets the answer "Nothing happens.".

        Returns:
            The answer. When the goal holds, the reward is 1.0 and the episode is done. `info["valid"]` is whether the
            command was understood.

        Raises:
            InputError: No episode is running, or `action` is not a string.
        """
        check_step(action, started=self._state is not None, done=self._done, example="a command such as 'look'")
        parsed = self._parse(action.strip())
        if parsed is None:
            observation, won = NOTHING_HAPPENS, False
        else:
            self._state.apply(parsed)
            self._commands = admissible_actions(self._state, self._texts)
            observation, won = format_answer(self._state, parsed, self._texts), self._state.satisfies(self._goal)
        self._done = won
        info = {"won": won, "admissible_commands": self.admissible_commands, "valid": parsed is not None}
        return Step(observation, float(won), won, info)

    def _game(self, task_id: str) -> Game | None:
        """Returns the game of a task, or None for an unknown task."""
        return self._games.get(task_id)

    def _parse(self, command: str) -> Action | None:
        """Returns the action of a command, or None if the command is not understood."""
        if command == "help":
            return HELP
        if command.startswith("move "):
            obj, to, receptacle = command[len("move ") :].rpartition(" to ")
            if to:
                command = self._texts.put.format(object=obj, receptacle=receptacle)
        return self._commands.get(command)


@register("household")
class Household(HouseholdEnv):
    """The six ALFWorld task types in generated kitchens, bathrooms, bedrooms and living rooms.

    Args:
        root: Must be None, because the environment has no data files.
        split: `"train"` (default) or `"valid"`. The splits share no scene.
        seed: Random seed of the scenes.
        tasks: Number of tasks.
        size: `"full"`: rooms as in ALFWorld. `"small"`: 4 to 6 receptacles and few objects.
        types: Task types, used in turn. None selects all six.
        loc_prefix: Whether the answer to `go to` begins with "You arrive at loc N.", as in the official ALFWorld engine.
            ReAct-style transcripts do not have this prefix.

    Raises:
        InputError: An argument has an unknown value.
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
        check_choice("split", split := split or "train", SPLITS)
        check_choice("size", size, SIZES)
        for task_type in (types := TASK_TYPES if types is None else types):
            check_choice("types", task_type, TASK_TYPES)
        if not types:
            raise InputError("types", "at least one", "none", "Ask for one or more.")
        check_task_count(tasks)
        games = (generate(types[index % len(types)], index, split=split, seed=seed, size=size) for index in range(tasks))
        super().__init__(game._replace(texts=ALFWORLD_TEXTS) if loc_prefix else game for game in games)
