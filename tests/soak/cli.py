"""The command line of the soak test: runs random attacks for some minutes, prints a table and each failure with its seed."""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple


class Failure(NamedTuple):
    """A case that broke something: its attack, its number and what happened."""

    attack: str
    number: int
    text: str


def main(arguments: list[str] | None = None) -> int:
    """Runs the attacks and returns the exit status: 1 if a case failed."""
    from tests.soak.attacks import ATTACKS
    from tests.soak.cases import NotPossible
    from tests.soak.inputs import Inputs, set_up_process

    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Attack whole commands at random.")
    parser.add_argument("--minutes", type=float, default=30, help="duration; all attacks take turns; 0: one case of each")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of the cases; default: the time")
    parser.add_argument("--cases", type=int, help="this many cases of each attack instead of a duration")
    parser.add_argument("--attack", action="append", help="only the attacks whose name contains this; repeatable")
    parser.add_argument("--case", type=int, help="only the case with this number of each attack")
    options = parser.parse_args(arguments)
    parts = options.attack or [""]
    chosen = [name for name in ATTACKS if any(part.lower() in name.lower() for part in parts)]
    if not chosen:
        parser.error(f"--attack: expected a part of one of {', '.join(ATTACKS)}; got {options.attack!r}")
    print(f"seed {options.seed}", flush=True)
    set_up_process()
    top = Path(tempfile.mkdtemp(prefix="sad-soak-"))
    top.chmod(0o755)  # for the attacks by a second user
    counts = dict.fromkeys(chosen, 0)
    failures: list[Failure] = []
    try:
        (top / "inputs").mkdir()
        inputs = Inputs(top / "inputs")
        end = time.monotonic() + 60 * options.minutes
        first = options.case or 0
        for number in itertools.count(first) if options.case is None else [first]:
            for name in list(counts):
                if not _is_due(options, number, end):
                    continue
                try:
                    text = run_case(name, number, options.seed, inputs, top / "case")
                except NotPossible as reason:
                    print(f"not run: {name}: {reason}", flush=True)
                    del counts[name]
                    continue
                counts[name] += 1
                if text:
                    failures.append(Failure(name, number, text))
                    print(f"FAILED {name}, case {number}: {text[-1500:]}", flush=True)
            if not _is_due(options, number + 1, end):
                break
    except KeyboardInterrupt:
        print("stopped; the table shows the cases so far", flush=True)
    finally:
        shutil.rmtree(top, ignore_errors=True)
    print(table(counts, failures))
    for failure in failures:
        print(f"\npython -m tests.soak --seed {options.seed} --attack {failure.attack!r} --case {failure.number}")
    return 1 if failures else 0


def _is_due(options: argparse.Namespace, number: int, end: float) -> bool:
    """Whether the attacks run their nth case. The first always runs."""
    if number == (options.case or 0):
        return True
    return number < options.cases if options.cases is not None else time.monotonic() < end


def run_case(name: str, number: int, seed: int, inputs: object, folder: Path) -> str:
    """Runs one case in an empty folder and returns what broke, or nothing.

    Raises:
        NotPossible: This machine does not permit the attack.
    """
    from tests.soak.attacks import ATTACKS
    from tests.soak.cases import Case, NotPossible

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        ATTACKS[name](Case(random.Random(f"{seed}/{name}/{number}"), folder, inputs))
    except NotPossible:
        raise
    except Exception as error:
        return str(error) if isinstance(error, AssertionError) and str(error) else traceback.format_exc()
    return ""


def table(counts: dict[str, int], failures: list[Failure]) -> str:
    """Returns the table: attack, cases, held."""
    width = max(map(len, [*counts, "attack"]))
    lines = [f"{'attack':<{width}}  cases   held"]
    for name, cases in counts.items():
        held = cases - sum(failure.attack == name for failure in failures)
        lines.append(f"{name:<{width}}  {cases:5}  {held:5}")
    total = sum(counts.values())
    return "\n".join([*lines, f"{'all':<{width}}  {total:5}  {total - len(failures):5}"])


if __name__ == "__main__":
    sys.exit(main())
