"""Reads the ALFWorld data folder: the games of a split, and single game files."""

from __future__ import annotations

import json
import os
import re
import stat
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from sad.envs.alfworld.pddl import game_from_pddl, goal_from_pddl
from sad.envs.checks import check_choice
from sad.envs.household.game import GOAL_PREFIX, TASK_TYPES, Game, GameTexts
from sad.envs.protocol import Task
from sad.errors import InputError

GAME_FILE = "game.tw-pddl"
_MAX_BYTES = 64 << 20  # the released games have less than 1 MiB
_GAMES_FOLDER = "json_2.1.1"
_DOWNLOAD = (
    "Get the games with `pip install alfworld` and `alfworld-download`, then pass their folder as root=, or set "
    "ALFWORLD_DATA to it."
)
_TEXT = r'"((?:[^"\\]|\\.)*)"'
_TASK = re.compile(r'"task"\s*:\s*\[\s*\{\s*"rhs"\s*:\s*' + _TEXT)
_PUT = re.compile(r'\baction\s+PutObject\s*\{\s*template\s*::\s*"([^"]*)"')
_PUT_ANSWER = re.compile(r'"PutObject\.feedback"\s*:\s*\[\s*\{\s*"rhs"\s*:\s*' + _TEXT)
_ARRIVAL = re.compile(r'"GotoLocation\.feedback"\s*:\s*\[\s*\{\s*"rhs"\s*:\s*' + _TEXT)
_HELP = re.compile(r"\baction\s+help\s*\{")
_FEEDBACK = re.compile(r'feedback\s*::\s*"([^"]*)"')
_HELP_RULE = re.compile(r'"help\.feedback"\s*:\s*\[\s*\{\s*"rhs"\s*:\s*' + _TEXT)
_FIELD = re.compile(r"(\{[^{}]*\}|#[^#]*#)")
_FIELDS = {  # field of a grammar rule -> field of `GameTexts`
    "{o}": "{object}",
    "{o.name}": "{object}",
    "{r}": "{receptacle}",
    "{r.name}": "{receptacle}",
    "{lend.name}": "loc {location}",
    "#examineReceptacle.feedback#": "",
}


class GameFile(NamedTuple):
    """A playable game.

    Attributes:
        task: Its task. The id is the path of the game's folder within the split.
        path: Path of its `game.tw-pddl`.
    """

    task: Task
    path: str


@dataclass(frozen=True)
class Listing:
    """The games of a split.

    Attributes:
        games: The playable games.
        skipped: One message per broken file, with its path and the reason.
    """

    games: tuple[GameFile, ...]
    skipped: tuple[str, ...]


def list_games(root: str | PathLike[str] | None, split: str, seed: int, types: Sequence[str] | None) -> Listing:
    """Lists the games of a split. Broken files are skipped with one warning, which counts them.

    Like the official engine, this omits games that are not marked as solvable, games with movable receptacles, and games
    with sliced objects.

    Args:
        root: The ALFWorld data folder, which contains `json_2.1.1`, or `json_2.1.1` itself. None selects the environment
            variable ALFWORLD_DATA, then `~/.cache/alfworld`, as in the official package.
        split: Name of a folder in it, such as `"valid_seen"`.
        seed: Random seed of the order. The order mixes the task types, so the first n tasks are a random sample.
        types: Task types to keep. None keeps all.

    Raises:
        InputError: There is no such folder, it has no playable game, or a task type is unknown.
    """
    for task_type in types or ():
        check_choice("types", task_type, TASK_TYPES)
    folder = _split_folder(root, split)
    games: list[GameFile] = []
    skipped: list[str] = []
    for path in _walk(folder):
        name = path.parent.relative_to(folder).as_posix()
        try:
            task = _task(path, name)
        except (InputError, ValueError, OSError, RecursionError) as error:
            skipped.append(f"{path}: {error}")
            continue
        if task is not None and (types is None or task.type in types):
            games.append(GameFile(task, str(path)))
    if not games:
        got = f"{len(skipped)} broken ones; the first: {skipped[0]}" if skipped else "none"
        raise InputError("split", f"games ({GAME_FILE}) to play in {folder}", got, _DOWNLOAD)
    if skipped:
        warnings.warn(f"{len(skipped)} broken game files skipped; the first: {skipped[0]}", stacklevel=3)
    games.sort(key=lambda game: (zlib.crc32(f"{seed}/{game.task.id}".encode()), game.task.id))
    return Listing(tuple(games), tuple(skipped))


def read_game(file: GameFile) -> Game:
    """Reads a game file. The latest 256 games stay in memory.

    Raises:
        InputError: The file is broken.
    """
    try:
        return _read(file, os.stat(file.path).st_mtime_ns)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(file.path, "a game file", str(error), _DOWNLOAD) from None


@lru_cache(maxsize=256)
def _read(file: GameFile, _modified_ns: int) -> Game:
    data = _load(file.path)
    game = game_from_pddl(data["pddl_problem"], file.task.goal, file.task.id)
    return game._replace(texts=_texts(_after_task(data["grammar"])))


def _split_folder(root: str | PathLike[str] | None, split: str) -> Path:
    given = root if root is not None else os.environ.get("ALFWORLD_DATA") or "~/.cache/alfworld"
    top = Path(given).expanduser()
    games = top / _GAMES_FOLDER if (top / _GAMES_FOLDER).is_dir() else top
    if not (games / split).is_dir():
        there = sorted(entry.name for entry in games.iterdir() if entry.is_dir()) if games.is_dir() else []
        if games.name == _GAMES_FOLDER and there:
            raise InputError("split", "one of " + ", ".join(there), repr(split), f"These are the folders in {games}.")
        expected = f"ALFWorld's data folder, which holds {_GAMES_FOLDER}/{split}"
        raise InputError("root", expected, str(top) + ("" if top.is_dir() else ", which does not exist"), _DOWNLOAD)
    return games / split


def _walk(folder: Path) -> Iterator[Path]:
    """Yields the paths of the game files below a folder. A folder that links reach again is listed once."""
    seen: set[tuple[int, int]] = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        game = path[len(str(folder)) :]
        if GAME_FILE in names and "movable" not in game and "Sliced" not in game:
            yield Path(path, GAME_FILE)


def _load(path: str | Path) -> dict[str, Any]:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
        got = f"{status.st_size} bytes" if stat.S_ISREG(status.st_mode) else "something else than a file"
        raise InputError(str(path), f"a file of at most {_MAX_BYTES >> 20} MiB", got, "Download it again.")
    data = json.loads(Path(path).read_bytes())
    if not isinstance(data, dict) or not all(isinstance(data.get(key), str) for key in ("grammar", "pddl_problem")):
        raise InputError(str(path), "an object with `grammar` and `pddl_problem`", "another value", "Download it again.")
    return data


def _task(path: Path, name: str) -> Task | None:
    """Reads the task of a game file without its scene. Returns None if the game is not marked as solvable."""
    data = _load(path)
    if not data.get("solvable"):
        return None
    problem: str = data["pddl_problem"]
    if problem.count("(") != problem.count(")") or "(atLocation agent" not in problem:
        raise InputError("pddl_problem", "a complete PDDL problem", "an incomplete one", "Download it again.")
    rule = _TASK.search(data["grammar"])
    if rule is None:
        raise InputError("grammar", 'a rule "task"', "none", "Download it again.")
    _texts(_after_task(data["grammar"]))  # raises an error for an unknown grammar
    instruction = json.loads(f'"{rule[1]}"').rpartition(GOAL_PREFIX)[2]
    return Task(name, goal_from_pddl(problem, name).type, " ".join(instruction.split()))


def _after_task(grammar: str) -> str:
    """Returns the grammar after its task. This part is the same in all games of a release, so `_texts` caches it."""
    return grammar[grammar.find('"GotoLocation.feedback"') :]


@lru_cache(maxsize=16)
def _texts(grammar: str) -> GameTexts:
    """Reads the texts that differ between releases of the games."""
    found = [pattern.search(grammar) for pattern in (_PUT, _PUT_ANSWER, _ARRIVAL)]
    rules = [_FIELD.split(match[1]) if match else [""] for match in found]
    if None in found or not {part for rule in rules for part in rule[1::2]} <= _FIELDS.keys():
        raise InputError("grammar", "the rules of ALFWorld's games", "other rules", "Use the games of alfworld-download.")
    put, put_answer, arrival = ("".join(_FIELDS.get(part, part) for part in rule) for rule in rules)
    return GameTexts(put, put_answer, arrival, normalize_lines(_help(grammar)))


def _help(grammar: str) -> str:
    """Returns the answer to `help`, or "" if the grammar has none.

    The released games contain the answer itself. Games that users generate refer to a rule.
    """
    action = _HELP.search(grammar)
    answer = _FEEDBACK.search(grammar, action.end()) if action else None
    if answer is None or "#" not in answer[1]:
        return answer[1] if answer else ""
    rule = _HELP_RULE.search(grammar)
    return json.loads(f'"{rule[1]}"') if rule else ""


def normalize_lines(text: str) -> str:
    """Removes blank lines and trailing whitespace, as in all observations of this package."""
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())
