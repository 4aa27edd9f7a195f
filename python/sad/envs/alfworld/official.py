"""The official engine, TextWorld with ALFWorld's names, behind the protocol of this package's worlds."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from os import PathLike
from typing import Any

from sad.envs.alfworld.expert import play_expert
from sad.envs.alfworld.files import GameFile, lines_of, list_games, read_game
from sad.envs.household.env import no_such_task
from sad.envs.protocol import Step, Task
from sad.envs.registry import register
from sad.errors import InputError

_BANNER = "-= Welcome to TextWorld, ALFRED! =-"


@register("alfworld-official")
class OfficialAlfworld:
    """The games of an ALFWorld data folder on the engine of the package `alfworld` (an extra of that name).

    A second opinion on `alfworld`, which has the same tasks in the same order and is some hundred times faster. A shallow
    copy is an independent seat with an engine of its own.

    Args:
        root: See `Alfworld`.
        split: See `Alfworld`.
        seed: See `Alfworld`.
        types: See `Alfworld`.

    Raises:
        InputError: `alfworld` is not installed, and as `Alfworld` does.
    """

    expert = staticmethod(play_expert)

    def __init__(
        self,
        root: str | PathLike[str] | None = None,
        split: str | None = None,
        seed: int = 0,
        *,
        types: Sequence[str] | None = None,
    ) -> None:
        self._textworld = _import("textworld")
        self._names = _import("alfworld.agents.environment.alfred_tw_env").AlfredDemangler
        listing = list_games(root, split or "train", seed, types)
        self._files: dict[str, GameFile] = {file.task.id: file for file in listing.games}
        self.skipped = listing.skipped
        self.tasks = tuple(file.task for file in listing.games)
        self._engine: Any = None
        self._file: GameFile | None = None
        self._state: Any = None

    def __copy__(self) -> OfficialAlfworld:
        seat = object.__new__(type(self))
        seat.__dict__.update(self.__dict__, _engine=None, _file=None, _state=None)
        return seat

    @property
    def admissible_commands(self) -> list[str]:
        """Every command that would do something now, sorted."""
        return list(self._state["admissible_commands"]) if self._state is not None else []

    @property
    def placing(self) -> str:
        """How the running game wants a thing to be placed: a command with `{thing}` and `{place}`."""
        if self._file is None:
            raise _not_running("none")
        return read_game(self._file).dialect.place

    def reset(self, task: Task) -> str:
        """Starts an episode and returns what is in the room, and the task.

        Raises:
            InputError: `task` is not one of `tasks`.
        """
        file = self._files.get(task.id) if isinstance(task, Task) else None
        if file is None:
            raise no_such_task(task, self.tasks)
        if self._engine is None:  # each loads a planner's library of its own, so a seat keeps the one it has
            infos = self._textworld.EnvInfos(won=True, admissible_commands=True)
            self._engine = self._textworld.start(file.path, infos, wrappers=[self._names()])
        else:
            self._engine.load(file.path)
        self._file, self._state = file, self._engine.reset()
        return lines_of(self._state["feedback"].replace(_BANNER, ""))

    def step(self, action: str) -> Step:
        """Takes an action.

        Returns:
            The answer, with reward 1.0 and `done` as soon as the goal holds; `info["valid"]` says whether the action
            was admissible.

        Raises:
            InputError: No episode is running, or `action` is not text.
        """
        if self._state is None or self._state["won"]:
            raise _not_running("none" if self._state is None else "one that is over")
        if not isinstance(action, str):
            raise InputError("action", "text", f"a {type(action).__name__}", "Pass a command such as 'look'.")
        valid = action.strip() in self._state["admissible_commands"]
        self._state, _, _ = self._engine.step(action)
        won = bool(self._state["won"])
        info = {"won": won, "admissible_commands": self.admissible_commands, "valid": valid}
        return Step(lines_of(self._state["feedback"]), float(won), won, info)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        remedy = 'Install it with `pip install "structured-agent-distillation[alfworld]"`, or take "alfworld".'
        raise InputError("name", "the package `alfworld` for 'alfworld-official'", str(problem), remedy) from None


def _not_running(got: str) -> InputError:
    return InputError("env.step", "a running episode", got, "Call env.reset(task) first.")
