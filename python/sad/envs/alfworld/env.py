"""The ALFWorld environments: the same games on the household engine and on the official engine."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from os import PathLike
from typing import Any

from sad.envs.alfworld.data import GameFile, list_games, normalize_lines, read_game
from sad.envs.alfworld.expert import rollout_expert
from sad.envs.checks import check_step, not_running, unknown_task
from sad.envs.household.env import HouseholdEnv
from sad.envs.household.game import Game
from sad.envs.household.state import Action
from sad.envs.protocol import Step, Task
from sad.envs.registry import register
from sad.errors import InputError

_BANNER = "-= Welcome to TextWorld, ALFRED! =-"


@register("alfworld")
class Alfworld(HouseholdEnv):
    """The games of an ALFWorld data folder, with the observations, admissible commands and success of the official engine.

    An agent can use only the commands of the game's own grammar. Games from before ALFWorld 0.4 have `put X in/on Y`.
    Later games have `move X to Y` and `help`. Observations omit the official banner and blank lines.

    The constructor reads the tasks of all games. `reset` reads the scene of its game.

    Args:
        root: The ALFWorld data folder that `alfworld-download` creates. None selects the environment variable
            ALFWORLD_DATA, then `~/.cache/alfworld`.
        split: `"train"` (default), `"valid_seen"`, `"valid_unseen"`, or another folder of games next to them.
        seed: Random seed of the task order. Nothing else is random.
        types: Task types to keep. None keeps all six.
        loc_prefix: Whether the answer to `go to` begins with "You arrive at ...", as in the official engine.
            ReAct-style transcripts and `household` do not have this prefix.

    Attributes:
        skipped: One message per broken game file that was left out, with its path and the reason.

    Raises:
        InputError: There is no such folder, it has no playable game, or an argument has an unknown value.
    """

    expert = staticmethod(rollout_expert)

    def __init__(
        self,
        root: str | PathLike[str] | None = None,
        split: str | None = None,
        seed: int = 0,
        *,
        types: Sequence[str] | None = None,
        loc_prefix: bool = True,
    ) -> None:
        super().__init__(())
        listing = list_games(root, split or "train", seed, types)
        self._files = {file.task.id: file for file in listing.games}
        self._tasks = tuple(file.task for file in listing.games)
        self._loc_prefix = loc_prefix
        self.skipped = listing.skipped

    def _game(self, task_id: str) -> Game | None:
        if task_id not in self._files:
            return None
        game = read_game(self._files[task_id])
        return game if self._loc_prefix else game._replace(texts=game.texts._replace(arrival=""))

    def _parse(self, command: str) -> Action | None:
        return self._commands.get(command)


@register("alfworld-official")
class OfficialAlfworld:
    """The games of an ALFWorld data folder on the official engine, from the package `alfworld`.

    It has the same tasks in the same order as `alfworld`, and is slower (see docs/alfworld.md). Use it to check results
    of `alfworld`. A shallow copy runs its own episode on its own engine.

    Args:
        root: See `Alfworld`.
        split: See `Alfworld`.
        seed: See `Alfworld`.
        types: See `Alfworld`.

    Attributes:
        tasks: All tasks.
        skipped: See `Alfworld`.

    Raises:
        InputError: The package `alfworld` is not installed, or for the reasons of `Alfworld`.
    """

    expert = staticmethod(rollout_expert)

    def __init__(
        self,
        root: str | PathLike[str] | None = None,
        split: str | None = None,
        seed: int = 0,
        *,
        types: Sequence[str] | None = None,
    ) -> None:
        self._textworld = _import("textworld")
        self._name_wrapper = _import("alfworld.agents.environment.alfred_tw_env").AlfredDemangler
        listing = list_games(root, split or "train", seed, types)
        self._files: dict[str, GameFile] = {file.task.id: file for file in listing.games}
        self.skipped = listing.skipped
        self.tasks = tuple(file.task for file in listing.games)
        self._engine: Any = None
        self._file: GameFile | None = None
        self._state: Any = None

    def __copy__(self) -> OfficialAlfworld:
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _engine=None, _file=None, _state=None)
        return other

    @property
    def admissible_commands(self) -> list[str]:
        """The commands that have an effect in the current state, sorted."""
        return list(self._state["admissible_commands"]) if self._state is not None else []

    @property
    def put_command(self) -> str:
        """The command of the current game that places an object, with the fields `{object}` and `{receptacle}`."""
        if self._file is None:
            raise not_running("none")
        return read_game(self._file).texts.put

    def reset(self, task: Task) -> str:
        """Starts an episode and returns two lines: the room description and the task.

        Raises:
            InputError: `task` is not one of `tasks`.
        """
        file = self._files.get(task.id) if isinstance(task, Task) else None
        if file is None:
            raise unknown_task(task, self.tasks)
        if self._engine is None:  # an engine loads its own planner library, so each copy creates one engine and keeps it
            infos = self._textworld.EnvInfos(won=True, admissible_commands=True)
            self._engine = self._textworld.start(file.path, infos, wrappers=[self._name_wrapper()])
        else:
            self._engine.load(file.path)
        self._file, self._state = file, self._engine.reset()
        return normalize_lines(self._state["feedback"].replace(_BANNER, ""))

    def step(self, action: str) -> Step:
        """Runs one command.

        Returns:
            The answer. When the goal holds, the reward is 1.0 and the episode is done. `info["valid"]` is whether the
            command was admissible.

        Raises:
            InputError: No episode is running, or `action` is not a string.
        """
        started = self._state is not None
        check_step(action, started=started, done=started and self._state["won"], example="a command such as 'look'")
        valid = action.strip() in self._state["admissible_commands"]
        self._state, _, _ = self._engine.step(action)
        won = bool(self._state["won"])
        info = {"won": won, "admissible_commands": self.admissible_commands, "valid": valid}
        return Step(normalize_lines(self._state["feedback"]), float(won), won, info)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        remedy = 'Install it with `pip install ".[alfworld]"`, or use "alfworld".'
        raise InputError("name", "the package `alfworld` for 'alfworld-official'", str(error), remedy) from None
