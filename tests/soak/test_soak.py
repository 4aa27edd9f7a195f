"""A short form of the soak test, and checks that its attacks would notice what they look for."""

from __future__ import annotations

import contextlib
import random

import pytest

from tests.processes import run_python
from tests.soak import mutate
from tests.soak.commands import Result

# One case of each. The kills of the other commands run in `make soak`; their kinds are tested beside the code.
SHORT = ("SIGKILL at a file operation: train", "ENOSPC at a file operation: collect", "a disk of random size", "run folder")
SHORT += (
    "teacher cache",
    "collected episodes",
    "model folder",
    "hostile",
    "odd names",
    "endpoints",
    "worlds",
    "two processes",
    "limit of file sizes",
    "one step, skipped",
    "two users: one continues",
)


def test_the_short_form_holds(tmp_path):
    words = [word for name in SHORT for word in ("--attack", name)]
    done = run_python("-m", "tests.soak", "--minutes", "0", "--seed", "5", *words, folder=tmp_path, timeout=600)
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    cases = str(len(SHORT) - said.count("not run: "))  # some attacks need root
    assert said.rstrip().splitlines()[-1].split() == ["all", cases, cases], said


@pytest.mark.parametrize(
    ("code", "said", "broken"),
    [
        (2, "sad: data: expected a file, got none.", False),
        (0, "Traceback (most recent call last):", True),
        (1, "", True),
        (-11, "", True),
        (2, "", True),
        (2, "sad: one\nsad: two", True),
    ],
)
def test_a_broken_command_is_noticed(code, said, broken):
    with pytest.raises(AssertionError) if broken else contextlib.nullcontext():
        Result(code, said, 0.1).check(0, 2)


def test_every_damage_changes_the_content():
    rng = random.Random(0)
    data = b'{"id": "a", "text": "Action: go 1", "spans": [[0, 6, "act"]]}\n' * 3
    changed = [mutate.damage(data, rng) for _ in range(200)]
    assert sum(x != data for x in changed) > 190
    assert mutate.flip(data, rng) != data and mutate.flip(b"", rng) == b""
