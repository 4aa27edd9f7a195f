"""ALFWorld's data folder: which games a split has, and what a game file says."""

from __future__ import annotations

import json
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from sad.envs.household.dialect import Dialect
from sad.envs.household.game import Game
from sad.envs.household.goal import PREAMBLE, TASK_TYPES
from sad.envs.household.pddl import game_from_pddl, goal_from_pddl
from sad.envs.protocol import Task
from sad.errors import InputError

GAME_FILE = "game.tw-pddl"
_GAMES = "json_2.1.1"
_GET_IT = (
    "Get the games with `pip install alfworld` and `alfworld-download`, then pass the folder they are in as root=, or set "
    "ALFWORLD_DATA to it."
)
_TEXT = r'"((?:[^"\\]|\\.)*)"'
_TASK = re.compile(r'"task"\s*:\s*\[\s*\{\s*"rhs"\s*:\s*' + _TEXT)
_PLACE = re.compile(r'\baction\s+PutObject\s*\{\s*template\s*::\s*"([^"]*)"')
_PLACED = re.compile(r'"PutObject\.feedback"\s*:\s*\[\s*\{\s*"rhs"\s*:\s*' + _TEXT)
_ARRIVAL = re.compile(r'"GotoLocation\.feedback"\s*:\s*\[\s*\{\s*"rhs"\s*:\s*' + _TEXT)
_HELP = re.compile(r'\baction\s+help\s*\{.*?feedback\s*::\s*"([^"]*)"', re.DOTALL)
_HELP_RULE = re.compile(r'"help\.feedback"\s*:\s*\[\s*\{\s*"rhs"\s*:\s*' + _TEXT)
_SLOT = re.compile(r"(\{[^{}]*\}|#[^#]*#)")
_SLOTS = {  # what a rule names, and what `Dialect` calls it
    "{o}": "{thing}",
    "{o.name}": "{thing}",
    "{r}": "{place}",
    "{r.name}": "{place}",
    "{lend.name}": "loc {spot}",
    "#examineReceptacle.feedback#": "",
}


class GameFile(NamedTuple):
    """A game that can be played.

    Attributes:
        task: Its task; the id is the game's folder, below the split's.
        path: Of its `game.tw-pddl`.
    """

    task: Task
    path: str


@dataclass(frozen=True)
class Listing:
    """The games of a split.

    Attributes:
        games: Those that can be played.
        skipped: For each broken file, where it is and what is wrong.
    """

    games: tuple[GameFile, ...]
    skipped: tuple[str, ...]


def list_games(root: str | PathLike[str] | None, split: str, seed: int, types: Sequence[str] | None) -> Listing:
    """Finds the games of a split. Broken files are skipped, with one warning that counts them.

    Left out without a word is what the official engine leaves out: games that are not marked as solvable, and those with
    movable receptacles or sliced things.

    Args:
        root: ALFWorld's data folder, which holds `json_2.1.1`, or `json_2.1.1` itself; None takes the environment
            variable ALFWORLD_DATA, then `~/.cache/alfworld`, where the official package looks.
        split: Name of a folder in it, such as `"valid_seen"`.
        seed: Of the order, in which the task types are mixed; the first n tasks are a fair sample.
        types: Task types to keep; None keeps all.

    Raises:
        InputError: There is no such folder, no playable game in it, or an unknown type is asked for.
    """
    for task_type in types or ():
        if task_type not in TASK_TYPES:
            raise InputError("types", "one of " + ", ".join(TASK_TYPES), repr(task_type), "Pass one of these.")
    folder = _split_folder(root, split)
    games: list[GameFile] = []
    skipped: list[str] = []
    for path in _walk(folder):
        name = path.parent.relative_to(folder).as_posix()
        try:
            task = _task(path, name)
        except (InputError, ValueError, OSError) as problem:
            skipped.append(f"{path}: {problem}")
            continue
        if task is not None and (types is None or task.type in types):
            games.append(GameFile(task, str(path)))
    if not games:
        got = f"{len(skipped)} broken ones; the first: {skipped[0]}" if skipped else "none"
        raise InputError("split", f"games ({GAME_FILE}) to play in {folder}", got, _GET_IT)
    if skipped:
        warnings.warn(f"{len(skipped)} broken game files skipped; the first: {skipped[0]}", stacklevel=3)
    games.sort(key=lambda game: (zlib.crc32(f"{seed}/{game.task.id}".encode()), game.task.id))
    return Listing(tuple(games), tuple(skipped))


def read_game(file: GameFile) -> Game:
    """The game in a file; the latest few hundred are kept in memory.

    Raises:
        InputError: The file is broken.
    """
    try:
        return _read(file, os.stat(file.path).st_mtime_ns)
    except InputError:
        raise
    except (OSError, ValueError) as problem:
        raise InputError(file.path, "a game file", str(problem), _GET_IT) from None


@lru_cache(maxsize=256)
def _read(file: GameFile, _changed: int) -> Game:
    data = _load(file.path)
    game = game_from_pddl(data["pddl_problem"], file.task.goal, file.task.id)
    return game._replace(dialect=_dialect(_after_task(data["grammar"])))


def _split_folder(root: str | PathLike[str] | None, split: str) -> Path:
    given = root if root is not None else os.environ.get("ALFWORLD_DATA") or "~/.cache/alfworld"
    top = Path(given).expanduser()
    games = top / _GAMES if (top / _GAMES).is_dir() else top
    if not (games / split).is_dir():
        there = sorted(entry.name for entry in games.iterdir() if entry.is_dir()) if games.is_dir() else []
        if games.name == _GAMES and there:
            raise InputError("split", "one of " + ", ".join(there), repr(split), f"These are the folders in {games}.")
        expected = f"ALFWorld's data folder, which holds {_GAMES}/{split}"
        raise InputError("root", expected, str(top) + ("" if top.is_dir() else ", which is not there"), _GET_IT)
    return games / split


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        below = place[len(str(folder)) :]
        if GAME_FILE in names and "movable" not in below and "Sliced" not in below:
            yield Path(place, GAME_FILE)


def _load(path: str | Path) -> dict[str, Any]:
    data = json.loads(Path(path).read_bytes())
    if not isinstance(data, dict) or not all(isinstance(data.get(key), str) for key in ("grammar", "pddl_problem")):
        raise InputError(str(path), "an object with `grammar` and `pddl_problem`", "something else", "Download it again.")
    return data


def _task(path: Path, name: str) -> Task | None:
    """The task of a game file, without building its scene; None if the game is not marked as solvable."""
    data = _load(path)
    if not data.get("solvable"):
        return None
    problem: str = data["pddl_problem"]
    if problem.count("(") != problem.count(")") or "(atLocation agent" not in problem:
        raise InputError("pddl_problem", "a whole PDDL problem", "a part of one", "Download it again.")
    asked = _TASK.search(data["grammar"])
    if asked is None:
        raise InputError("grammar", 'a rule "task"', "none", "Download it again.")
    _dialect(_after_task(data["grammar"]))
    words = json.loads(f'"{asked[1]}"').rpartition(PREAMBLE)[2]
    return Task(name, goal_from_pddl(problem, name).type, " ".join(words.split()))


def _after_task(grammar: str) -> str:
    """The grammar from its task on, which is the same in all games of a release."""
    return grammar[grammar.find('"GotoLocation.feedback"') :]


@lru_cache(maxsize=16)
def _dialect(grammar: str) -> Dialect:
    """Reads the wording that differs between releases of the games."""
    found = [pattern.search(grammar) for pattern in (_PLACE, _PLACED, _ARRIVAL)]
    rules = [_SLOT.split(match[1]) if match else [""] for match in found]
    if None in found or not {part for rule in rules for part in rule[1::2]} <= _SLOTS.keys():
        raise InputError("grammar", "the rules of ALFWorld's games", "others", "Use the games of alfworld-download.")
    place, placed, arrival = ("".join(_SLOTS.get(part, part) for part in rule) for rule in rules)
    return Dialect(place, placed, arrival, lines_of(_help(grammar)))


def _help(grammar: str) -> str:
    """The answer to `help`: written out, as in the released games, or in a rule, as in games that users make; or none."""
    answer = _HELP.search(grammar)
    if answer is None or "#" not in answer[1]:
        return answer[1] if answer else ""
    rule = _HELP_RULE.search(grammar)
    return json.loads(f'"{rule[1]}"') if rule else ""


def lines_of(text: str) -> str:
    """An answer as the worlds here give it: without blank lines, and without blanks at the ends of lines."""
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())
