"""The adapter of the official engine: with the real engine if it is installed, and with a fake one."""

from __future__ import annotations

import copy
import random
import sys
from types import ModuleType, SimpleNamespace

import pytest

import sad

from .alfworld_data import rewrite_for_0_4, unpack, write_game

BOOK = "look_at_obj_in_light-Book-None-DeskLamp-301"


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    write_game(tmp_path / "train" / BOOK / "trial_1")
    monkeypatch.setitem(sys.modules, "textworld", None)
    with pytest.raises(sad.InputError, match=r'the package `alfworld` .*pip install "\.\[alfworld\]"'):
        sad.envs.make("alfworld-official", root=tmp_path)


class FakeEngine:
    """The part of TextWorld's environment that the adapter uses, on the household engine."""

    def __init__(self, root):
        self.env = sad.envs.make("alfworld", root=root)

    def load(self, path):
        self.task = next(task for task in self.env.tasks if f"/{task.id}/" in path)

    def state(self, feedback, won=False):
        return {"feedback": feedback, "admissible_commands": self.env.admissible_commands, "won": won}

    def reset(self):
        room, asked = self.env.reset(self.task).split("\n")
        return self.state(f"-= Welcome to TextWorld, ALFRED! =-\n\n{room}\n\n{asked}")

    def step(self, command):
        step = self.env.step(command)
        return self.state(f"\n{step.observation}\n", step.info["won"]), int(step.done), step.done


@pytest.fixture
def fake_packages(tmp_path, monkeypatch):
    """A data folder with two games, and fake packages."""
    write_game(tmp_path / "train" / BOOK / "trial_1")
    write_game(tmp_path / "train" / BOOK / "trial_2", task="look at book under the desklamp.")
    started = []

    def start(path, infos, wrappers):
        engine = FakeEngine(tmp_path)
        engine.load(path)
        started.append(path)
        return engine

    textworld, names = ModuleType("textworld"), ModuleType("alfworld.agents.environment.alfred_tw_env")
    textworld.start, textworld.EnvInfos = start, SimpleNamespace
    names.AlfredDemangler = object
    monkeypatch.setitem(sys.modules, "textworld", textworld)
    monkeypatch.setitem(sys.modules, names.__name__, names)
    for package in ("alfworld", "alfworld.agents", "alfworld.agents.environment"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    return tmp_path, started


def test_the_adapter_keeps_the_protocol(fake_packages):
    root, started = fake_packages
    env, ours = (sad.envs.make(name, root=root) for name in ("alfworld-official", "alfworld"))
    assert isinstance(env, sad.envs.Env) and env.tasks == ours.tasks
    with pytest.raises(sad.InputError, match="a running episode, got none"):
        env.step("look")
    other = copy.copy(env)
    for task in env.tasks:
        assert env.reset(task) == ours.reset(task)  # without banner and blank lines
        assert other.reset(task) == ours.reset(task)
        for action in ("go to desk 1", "sing", " take book 1 from desk 1 "):
            assert env.step(action) == ours.step(action)
        assert other.step("look").observation.startswith("You are in the middle of a room.")  # the copy has not moved
        last = env.step("use desklamp 1")
        assert last == ours.step("use desklamp 1") and last.done
        with pytest.raises(sad.InputError, match="got one that is over"):
            env.step("look")
    assert len(started) == 2  # one engine per copy, reused for every game
    assert env.expert(env, env.tasks[0]).text == ours.expert(ours, ours.tasks[0]).text
    with pytest.raises(sad.InputError, match="one of the 2 tasks of this env, got a str"):
        env.reset("trial_1")


@pytest.mark.parametrize("newer", [False, True], ids=["put", "move"])
def test_both_engines_give_equal_answers_on_random_walks(newer, shared_data, tmp_path):
    pytest.importorskip("alfworld", reason="the official engine is not installed (extra `alfworld`)")
    unpack(shared_data / "alfworld" / "games_valid_seen.jsonl.gz", tmp_path)
    if newer:
        for path in tmp_path.rglob("game.tw-pddl"):
            rewrite_for_0_4(path)
    official = sad.envs.make("alfworld-official", root=tmp_path, split="valid_seen")
    ours = sad.envs.make("alfworld", root=tmp_path, split="valid_seen")
    rng = random.Random(f"{newer}")
    for task in ours.tasks[:3]:
        assert official.reset(task) == ours.reset(task)
        assert official.admissible_commands == ours.admissible_commands
        for _ in range(25):
            here = [command for command in ours.admissible_commands if not command.startswith("go to ")]
            action = rng.choice([rng.choice(here), rng.choice(ours.admissible_commands), "help", "move mug 1 to desk 1"])
            step = ours.step(action)
            assert official.step(action) == step, (task.id, action)
            if step.done:
                break
