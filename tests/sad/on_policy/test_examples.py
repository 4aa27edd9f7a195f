"""The examples of a training have exactly the token ids that the student wrote, and a kind for each of them."""

from __future__ import annotations

import dataclasses

from sad.agents.episode import EndReason
from sad.agents.rollout import rollout
from sad.on_policy.engines import LocalEngine
from sad.on_policy.env_rollouts import EnvRollouts
from sad.on_policy.examples import example_of, judge_all, played_tokens, written_tokens
from sad.trajectories.encode import encode_all
from sad.trajectories.read import read_jsonl
from sad.trajectories.trajectory import write_jsonl
from tests.sad.agents.toy import Doors, ScriptedModel, tiny_model
from tests.sad.on_policy.doors import TOKENIZER
from tests.sad.on_policy.play import rollout_of


class Recording(LocalEngine):
    """Keeps the episodes that it has played."""

    def episodes(self, *args):
        self.played = super().episodes(*args)
        return self.played


def test_1000_episodes_are_trained_with_the_ids_of_their_play(tmp_path):
    """The ids go through the file of the rollout. Text alone would be tokenized otherwise in many episodes."""
    model = tiny_model("gpt2", len(TOKENIZER), acts=True, tokenizer=TOKENIZER)
    engine = Recording()
    source = EnvRollouts(Doors(), TOKENIZER, max_steps=2, max_turn_tokens=8, batch_size=512, temperature=1.5, engine=engine)
    found = source.play(model, rollout_of(episodes=1008))
    write_jsonl(tmp_path / "played.jsonl", found)
    read = read_jsonl(tmp_path / "played.jsonl")
    assert read == found and len({one.id for one in read}) == 1008
    ends = set()
    for trajectory, episode in zip(read, engine.played):
        example = example_of(trajectory.kept_tokens)
        stopped = [TOKENIZER.eos_token_id] * (episode.end is EndReason.NO_ACTION)
        assert example["input_ids"] == [*episode.token_ids, *stopped]
        written = [*episode.generated_mask, *(True for _ in stopped)]
        assert [kind in (1, 2) for kind in example["span_ids"]] == written, "what the student wrote has a loss, no more"
        assert written_tokens(trajectory.kept_tokens) == sum(written)
        ends.add(episode.end)
    assert {EndReason.ENDLESS, EndReason.NO_ACTION} <= ends, "the test must cover both"
    again = encode_all(read, TOKENIZER, kept_ids="never", add_eos=False, say=lambda message: None)
    ids = {one.id: one.kept_tokens.ids for one in read}
    assert sum(example["input_ids"] != ids[name] for name, example in zip(again.ids, again.examples)) > 100


def test_lines_without_a_prefix_are_judged_as_reasoning():
    env = Doors()
    script = "Hm.\nAction: look\nReasoning: door 2.\nAction: open door 2\n"
    episode = rollout(ScriptedModel(TOKENIZER, script), TOKENIZER, env, env.tasks[1:2])[0]
    before = episode.kept_tokens
    kept = played_tokens(episode, TOKENIZER)
    assert kept.ids == before.ids
    text = {kind: TOKENIZER.decode([i for i, k in zip(kept.ids, kept.kinds) if k == kind]) for kind in "12"}
    assert text["1"] == "Hm.\nReasoning: door 2.\n" and text["2"] == "Action: look\nAction: open door 2\n"
    assert TOKENIZER.decode([i for i, k in zip(before.ids, before.kinds) if k == "1"]) == "Reasoning: door 2.\n"


def test_a_stop_without_an_action_is_judged():
    env = Doors()
    for script, wrote in (("Reasoning: I give up.\n", True), ("", False)):
        episode = rollout(ScriptedModel(TOKENIZER, script), TOKENIZER, env, env.tasks[1:2])[0]
        assert episode.end is EndReason.NO_ACTION and (True in episode.generated_mask) == wrote
        kept = played_tokens(episode, TOKENIZER)
        assert kept.ids == [*episode.token_ids, TOKENIZER.eos_token_id] and kept.kinds[-1] == "1"
        assert encode_all([dataclasses.replace(episode.to_trajectory(), kept_tokens=kept)], TOKENIZER, say=print).kept == 1


def test_without_a_token_of_the_student_there_is_no_example():
    env = Doors()
    episode = rollout(ScriptedModel(TOKENIZER, "Action: look\n"), TOKENIZER, env, env.tasks[1:2], max_steps=1)[0]
    kept = episode.kept_tokens
    assert example_of(kept) is not None
    assert example_of(dataclasses.replace(kept, kinds="0" * len(kept.ids))) is None
    assert example_of(dataclasses.replace(kept, kinds="1" + "0" * (len(kept.ids) - 1))) is None


def test_judge_all_keeps_kinds_and_adds_the_missing():
    assert judge_all([1, 0, 2, 3]) == [1, 1, 2, 1]
