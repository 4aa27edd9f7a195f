"""HotPotQA with real questions: equal scores and verdicts as in recorded runs of other projects. Its expert."""

from __future__ import annotations

import re

import pytest

import sad
from sad.envs.hotpotqa.matching import exact_match, f1, normalize

from .kitchen import read_gz

RUNS = ("fireact_dev_llama2_13b", "fireact_gpt4_train", "knowagent_llama2_13b_d0", "reflexion_react_base")
ACTION = re.compile(r"^Action(?: \d+)?: *(.*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(shared_data):
    return shared_data / "hotpotqa"


@pytest.fixture(scope="module")
def env(folder):
    return sad.envs.make("hotpotqa", root=folder / "questions_with_context.jsonl.gz")


@pytest.fixture(scope="module")
def trajectories(env):
    return [env.expert(env, task) for task in env.tasks]


def test_recorded_scores_are_reproduced(folder):
    records = list(read_gz(folder / "fireact_dev_llama2_13b.jsonl.gz"))
    assert len(records) == 499
    for record in records:
        answer = record["pred"] or ""
        assert f1(answer, record["answer"]) == pytest.approx(record["f1"], abs=1e-9)
        assert exact_match(answer, record["answer"]) == record["success"]


def test_recorded_episodes_get_the_same_verdict(env, folder):
    """The recorded agents read other pages (Wikipedia, web search), but their last action must get the same reward."""
    tasks = {normalize(task.goal): task for task in env.tasks}
    count = finished = 0
    for run in RUNS:
        for record in read_gz(folder / f"{run}.jsonl.gz"):
            task = tasks.get(normalize(record["task"]))
            if task is None:
                continue
            env.reset(task)
            steps = []
            for action in ACTION.findall(record["text"]):
                steps.append(env.step(action))
                if steps[-1].done:
                    break
            assert steps[-1].info["won"] == record["success"], record["id"]
            count += 1
            finished += steps[-1].done
    assert (count, finished) == (492, 475)


def test_the_expert_answers_every_question(trajectories, env):
    assert len(trajectories) == 600 and all(trajectory.success for trajectory in trajectories)
    assert sum(trajectory.extra["steps"] for trajectory in trajectories) / 600 < 3.6
    assert max(trajectory.extra["steps"] for trajectory in trajectories) <= 7  # the limit of ReAct
    assert [env.expert(env, task).text for task in env.tasks[:20]] == [trajectory.text for trajectory in trajectories[:20]]


def test_the_expert_searches_only_for_words_it_has_seen(trajectories):
    """Every word of a search is in the transcript before it, except for a few guesses, which say so."""
    guesses = 0
    for trajectory in trajectories:
        lines = trajectory.text.splitlines()
        assert len(lines) == 1 + 3 * trajectory.extra["steps"]
        seen = lines[0]
        for reasoning, line, observation in zip(*(lines[start::3] for start in (1, 2, 3))):
            query = re.fullmatch(r"Action: Search\[(.*)\]", line)
            if query and "My guess is" in reasoning:
                guesses += 1
            elif query:
                assert all(word in normalize(seen) for word in normalize(query[1]).split()), trajectory.text
            seen += f" {observation}"
        answer = lines[-2].removeprefix("Answer: ")
        if answer not in ("yes", "no"):
            assert normalize(answer) in normalize(seen)
    assert guesses < 20


def test_expert_trajectories_have_alternating_spans(trajectories):
    for trajectory in trajectories:
        kinds = [span.kind.name for span in sad.segment(trajectory.text, format="sad").spans]
        assert kinds == ["REASON", "ACT"] * trajectory.extra["steps"], trajectory.text
