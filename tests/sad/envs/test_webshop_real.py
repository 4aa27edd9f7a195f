"""WebShop with the original catalog: equal to recorded episodes of the original environment. Its expert."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from sad.envs import make
from sad.trajectories.segment import segment
from sad.trajectories.spans import SpanKind

from .webshop_files import SHARED, recorded, write_shared

pytest.importorskip("bm25s")
pytest.importorskip("rapidfuzz")
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared WebShop data is not beside this check-out")

CUT = 600  # characters; the recording truncates longer pages


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_shared(tmp_path_factory.mktemp("webshop"))


@pytest.fixture(scope="module")
def shop(folder):
    return make("webshop", folder, "test")


def without_limit(text):
    """Replaces the price limit. The original draws it without a seed, so it differs."""
    return re.sub(r"price lower than \d+.00 dollars", "price lower than X dollars", text)


def test_the_recorded_episodes(shop):
    """The 25 episodes are the first goals of the test split. All 125 pages and all rewards are equal."""
    episodes = recorded()
    assert len(episodes) == 25
    for episode, task in zip(episodes, shop.tasks):
        assert without_limit(task.goal) == without_limit(episode["goal"])
        shop.reset(task)
        turns = re.findall(r"Action: (.*)\nObservation: (.*)", episode["text"])
        for action, page in turns:
            step = shop.step(action)
            ours, theirs = without_limit(step.observation), without_limit(page)
            assert ours.startswith(theirs) if len(page) == CUT else ours == theirs
            assert step.info["valid"]
        assert step.done and step.reward == episode["reward"] and step.info["won"] == (episode["reward"] == 1)


def test_goals_and_splits(folder):
    splits = {split: make("webshop", folder, split).tasks for split in ("train", "eval", "test", "all")}
    assert {split: len(tasks) for split, tasks in splits.items()} == {"train": 5410, "eval": 1000, "test": 500, "all": 6910}
    assert splits["test"] + splits["eval"] + splits["train"] == splits["all"]
    assert len({task.id for task in splits["all"]}) == 6910
    assert len(make("webshop", folder, "test", goals="human").tasks) == 13


class OnlyText:
    """An environment that shows an expert only what an agent sees."""

    def __init__(self, env):
        self._env = env

    def reset(self, task):
        return self._env.reset(task)

    def step(self, action):
        observation, reward, done, info = self._env.step(action)
        return observation, reward, done, {key: info[key] for key in ("won", "metrics")}


def test_the_expert_needs_only_the_text(shop, folder):
    tasks = shop.tasks[:60]
    trajectories = [shop.expert(OnlyText(shop), task) for task in tasks]
    assert sum(one.success for one in trajectories) >= 0.8 * len(tasks)
    assert [one.text for one in trajectories[:5]] == [shop.expert(shop, task).text for task in tasks[:5]]
    rich = make("webshop", folder, "test", pages="rich")
    for task, one in zip(tasks, trajectories):
        lines = one.text.splitlines()
        assert max(len(line) for line in lines if line.startswith("Reasoning:")) < 600
        kinds = Counter(span.kind for span in segment(one.text, format="sad").spans)
        assert kinds[SpanKind.REASON] == kinds[SpanKind.ACT] == one.extra["steps"] <= 60
        if task in tasks[:5]:
            actions = [line for line in rich.expert(rich, task).text.splitlines() if line.startswith("Action:")]
            assert actions == [line for line in lines if line.startswith("Action:")]


def test_the_expert_obeys_max_steps_and_reads_human_instructions(shop, folder):
    for task in shop.tasks[:15]:
        assert shop.expert(shop, task, max_steps=15).extra["steps"] <= 15
    human = make("webshop", folder, "test", goals="human")
    scores = [human.expert(human, task).extra["metrics"]["score"] for task in human.tasks]
    assert sum(scores) / len(scores) > 0.5
