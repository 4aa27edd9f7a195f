"""ALFWorld data folders for tests: unpacked games, hand-made games, and games rewritten for ALFWorld 0.4."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from .test_alfworld_pddl import PROBLEM

HELP = "\nAvailable commands:\n  look:                             look around your current location\n"
NEWER = {  # the changes of ALFWorld 0.4 in the grammar of its games
    "You arrive at {lend.name}.": "You arrive at {r.name}.",
    "put {o} in/on {r}": "move {o} to {r}",
    "You put the {o.name} in/on the {r.name}.": "You move the {o.name} to the {r.name}.",
}
GRAMMAR = """
    "task": [ { "rhs": "Your task is to: {task}" } ],
    "GotoLocation.feedback": [ { "rhs": "You arrive at {lend.name}. #examineReceptacle.feedback#" } ],
    "PutObject.feedback": [ { "rhs": "You put the {o.name} in/on the {r.name}." } ]
action PutObject { template :: "put {o} in/on {r}"; feedback :: "#PutObject.feedback#"; }
"""


def unpack(games: Path, root: Path) -> Path:
    """Unpacks a file of packed games into `root`, in the layout of ALFWorld's data folder."""
    script = games.parent / "unpack_games.py"
    subprocess.run([sys.executable, script, games, root / "json_2.1.1"], check=True, capture_output=True)
    return root


def write_game(folder: Path, task: str = "examine the book with the desklamp.", **changed: object) -> Path:
    """Writes a small game. `changed` replaces fields of the file."""
    game = {"pddl_domain": "", "grammar": GRAMMAR.replace("{task}", task), "pddl_problem": PROBLEM, "solvable": True}
    folder.mkdir(parents=True)
    path = folder / "game.tw-pddl"
    path.write_text(json.dumps(game | changed))
    return path


def rewrite_for_0_4(path: Path) -> None:
    """Rewrites a game file as in ALFWorld 0.4."""
    game = json.loads(path.read_text())
    for old, new in NEWER.items():
        assert old in game["grammar"]
        game["grammar"] = game["grammar"].replace(old, new)
    game["grammar"] += f'\naction help {{\n    template :: "help";\n    feedback :: "{HELP}";\n}}\n'
    before, end, _ = game["pddl_domain"].rpartition(")")
    game["pddl_domain"] = f"{before}(:action help :parameters (?a - agent) :precondition () :effect (and (checked ?a))){end}"
    path.write_text(json.dumps(game))
