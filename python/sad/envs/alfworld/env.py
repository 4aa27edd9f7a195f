"""ALFWorld's own games, played by the household engine."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from sad.envs.alfworld.expert import play_expert
from sad.envs.alfworld.files import list_games, read_game
from sad.envs.household.env import HouseholdEnv
from sad.envs.household.game import Game
from sad.envs.household.world import Action
from sad.envs.registry import register


@register("alfworld")
class Alfworld(HouseholdEnv):
    """The games of an ALFWorld data folder: observations, admissible commands and success as the official engine has them.

    Only the commands that a game's own grammar has are understood: `put X in/on Y` in the games of before ALFWorld 0.4,
    `move X to Y` and `help` since then. The official banner and blank lines are left out of observations.

    Making a world reads the tasks of all games; a game's scene is read when it is played.

    Args:
        root: ALFWorld's data folder, as `alfworld-download` fills it; None takes the environment variable ALFWORLD_DATA,
            then `~/.cache/alfworld`.
        split: `"train"` (default), `"valid_seen"`, `"valid_unseen"`, or another folder of games beside them.
        seed: Of the order of the tasks; nothing else is random.
        types: Task types to keep; None keeps all six.
        loc_prefix: Keep "You arrive at ..." at the beginning of the answers to `go to`. The official engine writes it,
            ReAct-style transcripts and `household` do not.

    Attributes:
        skipped: For each broken game file that was left out, where it is and what is wrong with it.

    Raises:
        InputError: There is no such folder, nothing to play in it, or an argument is not what is listed here.
    """

    expert = staticmethod(play_expert)

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
        return game if self._loc_prefix else game._replace(dialect=game.dialect._replace(arrival=""))

    def _understood(self, command: str) -> Action | None:
        return self._commands.get(command)
