"""Attacks that change files which `sad` has written: a flipped bit, or a cut end."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.soak import mutate
from tests.soak.cases import Case, attack, files_below
from tests.soak.commands import Result, sad
from tests.soak.inputs import Task


def _flip_one(case: Case, within: Path) -> Path:
    path = case.rng.choice([path for path in files_below(within) if path.stat().st_size])
    data = path.read_bytes()
    path.write_bytes(mutate.flip(data, case.rng) if case.rng.random() < 0.8 else data[: case.rng.randrange(len(data))])
    return path


def _same_or_refused(case: Case, task: Task, result: Result, out: Path, path: Path) -> None:
    result.check(0, 2)
    if result.code == 0:
        assert task.result(out) == case.inputs.expected[task.name], f"another result after a change in {path.name}"


@attack("a changed bit or end: run folder")
def flipped_run(case: Case) -> None:
    task = case.inputs.tasks[case.rng.choice(("train", "cached"))]
    out = case.folder / "state" / task.out
    case.inputs.half_done(task.name, out)
    path = _flip_one(case, out)
    _same_or_refused(case, task, sad(*task.again(out), log=case.log), out, path)


@attack("a changed bit or end: teacher cache")
def flipped_cache(case: Case) -> None:
    """A training on the cache, or first the command that made it, which repairs it."""
    cache, task = case.folder / "cache", case.inputs.tasks["cached"]
    shutil.copytree(case.inputs.folder / "cache", cache)
    path = _flip_one(case, cache)
    if case.rng.random() < 0.5:
        made = case.inputs.tasks["cache"]
        again = sad(*made.start(cache), log=case.log)
        again.check(0, 2)
        if again.code == 2:
            return
    words = [str(cache) if word == str(case.inputs.folder / "cache") else word for word in task.start(case.folder / "run")]
    _same_or_refused(case, task, sad(*words, log=case.log), case.folder / "run", path)


@attack("a changed bit or end: collected episodes")
def flipped_episodes(case: Case) -> None:
    task = case.inputs.tasks["collect"]
    out = case.folder / "state" / task.out
    out.parent.mkdir()
    case.inputs.half_done("collect", out)
    path = _flip_one(case, out.parent)
    _same_or_refused(case, task, sad(*task.again(out), log=case.log), out, path)


@attack("a changed bit or end: model folder")
def flipped_model(case: Case) -> None:
    """A bit in the weights is another model, but every other damage is one message."""
    model = case.folder / "model"
    shutil.copytree(case.inputs.folder / "student", model)
    path = case.rng.choice([path for path in files_below(model) if path.stat().st_size])
    data = path.read_bytes()
    text = path.suffix == ".json" and case.rng.random() < 0.7
    path.write_bytes(
        mutate.damage(data, case.rng) if text else mutate.flip(data[: case.rng.randrange(len(data)) + 1], case.rng)
    )
    words = [str(model) if word == str(case.inputs.folder / "student") else word for word in case.inputs.tasks["eval"].words]
    sad(*words[:-2], log=case.log).check(0, 2)
