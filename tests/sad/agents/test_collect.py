"""Collected trajectories match the episodes and survive a round trip through a file."""

from __future__ import annotations

import pytest

import sad
from sad.agents.collect import collect, collect_expert, select_tasks
from sad.agents.episode import format_observation
from sad.agents.prompts import PROMPTS, prompt_text
from sad.envs.household.text import parse_goal
from sad.errors import InputError
from sad.trajectories.segment import segment
from sad.trajectories.spans import SpanKind

from .toy import Doors, ScriptedModel, tiny_model, toy_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer()


def test_samples_differ_have_their_own_ids_and_survive_a_file(tokenizer, tmp_path) -> None:
    env = Doors()
    model = tiny_model("llama", len(tokenizer), acts=True, tokenizer=tokenizer)
    seen: list[str] = []
    kept = collect(
        model,
        tokenizer,
        env,
        env.tasks[:3],
        env_name="doors",
        samples=2,
        temperature=1.0,
        extra={"model": "tiny"},
        on_trajectory=lambda t: seen.append(t.id),
        max_steps=3,
        max_turn_tokens=20,
    )
    assert [t.id for t in kept] == ["open-1", "open-2", "open-3", "open-1#1", "open-2#1", "open-3#1"]
    assert sorted(seen) == sorted(t.id for t in kept)
    assert [t.text for t in kept[:3]] != [t.text for t in kept[3:]]
    sad.write_jsonl(tmp_path / "kept.jsonl", kept)
    again = sad.read_jsonl(tmp_path / "kept.jsonl")
    assert again == kept
    assert again[0].extra["model"] == "tiny" and again[0].env == "doors" and again[0].extra["end"]


def test_a_model_that_repeats_the_expert_gets_the_same_transcript() -> None:
    """The expert and `rollout` write exactly the same transcript format."""
    env = sad.envs.make("household", split="train", seed=0, size="small", tasks=6)
    tokenizer = toy_tokenizer()
    for task, expert in zip(env.tasks, collect_expert(env, env.tasks), strict=True):
        assert expert.success
        spans = expert.segmented().spans
        script = "".join(expert.text[start:end] for start, end, _ in spans)
        model = ScriptedModel(tokenizer, script)
        model.config.n_positions = 10_000
        (episode,) = collect(model, tokenizer, env, [task], env_name="household")
        assert episode.text == expert.text
        assert (episode.success, episode.id, episode.task, episode.format) == (True, expert.id, expert.task, "sad")
        assert episode.extra["type"] == expert.extra["type"] and episode.extra["steps"] == expert.extra["steps"]
        assert format_observation(env.reset(task)) in episode.text and parse_goal(env.reset(task))


def test_skipped_samples_do_not_change_the_others(tokenizer) -> None:
    env = Doors()
    model = tiny_model("llama", len(tokenizer), acts=True, tokenizer=tokenizer)
    options = {"samples": 3, "temperature": 1.0, "max_steps": 2, "max_turn_tokens": 16}
    everything = collect(model, tokenizer, env, env.tasks[:4], **options)
    skip_ids = {everything[k].id for k in (0, 3, 5, 6, 7, 10)}
    rest = collect(model, tokenizer, env, env.tasks[:4], skip_ids=skip_ids, batch_size=3, **options)
    assert rest == [trajectory for trajectory in everything if trajectory.id not in skip_ids]
    experts = collect_expert(DoorsWithExpert(), env.tasks[:4], skip_ids={"open-2"}, max_steps=9)
    assert experts == ["open-1", "open-3", "open-4"]


class DoorsWithExpert(Doors):
    @staticmethod
    def expert(env, task, *, max_steps: int) -> str:
        assert max_steps == 9 and isinstance(env, DoorsWithExpert)
        return task.id


def test_every_env_has_prompts_in_the_expected_format(tmp_path) -> None:
    assert {"household", "alfworld", "webshop", "hotpotqa"} == set(PROMPTS)
    for env in PROMPTS:
        for name in ("paper", "env"):
            text = prompt_text(name, env)
            assert {span.kind for span in segment(text).spans} == {SpanKind.REASON, SpanKind.ACT}
    assert prompt_text("none", "doors") == ""
    (tmp_path / "own.txt").write_text("Be good.\n")
    assert prompt_text(str(tmp_path / "own.txt"), "doors") == "Be good.\n"
    for name in ("paper", str(tmp_path / "none.txt")):
        with pytest.raises(InputError, match="prompt"):
            prompt_text(name, "doors")


def test_select_tasks() -> None:
    env = Doors()
    assert select_tasks(env, 2) == env.tasks[:2] and select_tasks(env, None) == env.tasks
    for count in (0, 13):
        with pytest.raises(InputError, match="1 to 12"):
            select_tasks(env, count)


def test_invalid_arguments(tokenizer) -> None:
    env = Doors()
    with pytest.raises(InputError, match="expert"):
        collect_expert(env, env.tasks)
    with pytest.raises(InputError, match="all the same"):
        collect(None, tokenizer, env, env.tasks, samples=2, temperature=0.0)
