"""Prefix replay: the student writes the next turn of given trajectories, and no environment is called."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import sad
from sad.envs.household.env import HouseholdEnv
from sad.errors import InputError
from sad.on_policy.engines import LocalEngine
from sad.on_policy.examples import example_of
from sad.on_policy.prefix_replay import PrefixReplay
from sad.on_policy.turns import Turn, write_turns
from sad.trajectories.encode import encode_all
from sad.trajectories.read import read_jsonl
from sad.trajectories.trajectory import Trajectory
from tests.sad.agents.toy import tiny_model
from tests.sad.on_policy import doors
from tests.sad.on_policy.doors import TOKENIZER
from tests.sad.on_policy.play import rollout_of

REACT = "Question: which door?\nThought 1: I look.\nAction 1: look\nObservation 1: a door\nThought 2: it.\nAction 2: open\n"


class Written(LocalEngine):
    """Writes a given text instead of what the model would write."""

    def __init__(self, text: str) -> None:
        self._ids = TOKENIZER(text)["input_ids"]

    def turns(self, student, turns, tokenizer, **options):
        self.asked = list(turns)
        found = []
        for turn in turns:
            count = next((n for n in range(1, len(self._ids) + 1) if turn.ended(self._ids[:n])), len(self._ids))
            found.append(self._ids[: min(count, turn.most)])
        return found


def test_a_training_makes_no_call_to_an_environment(tmp_path, monkeypatch):
    calls = []
    for name in ("reset", "step"):
        monkeypatch.setattr(HouseholdEnv, name, lambda *args, name=name: calls.append(name))
    monkeypatch.setattr(sad.envs, "make", lambda *args, **options: calls.append("make"))
    doors.CountedDoors.calls = 0
    source = PrefixReplay(doors.demonstrations(), TOKENIZER, max_turn_tokens=8)
    made = doors.trainer(tmp_path, source)
    made.train()
    assert calls == [] and doors.CountedDoors.calls == 0
    logs = [log for log in made.state.log_history if "rollout_episodes" in log]
    assert [log["rollout_episodes"] for log in logs] == [6, 6, 6] and "rollout_success" not in logs[0]
    assert made.state.log_history[0]["on_policy_tokens_reason"] > 0 and "loss_reason" not in made.state.log_history[0]


def test_only_the_new_turn_has_a_loss_and_the_rest_is_the_teachers(tmp_path):
    demonstrations = doors.demonstrations()
    source = PrefixReplay(demonstrations, TOKENIZER, max_turn_tokens=8)
    made = doors.trainer(tmp_path, source)
    made.train()
    given = dict(zip((one.id for one in demonstrations), encode_all(demonstrations, TOKENIZER).examples))
    starts = set()
    for step in (0, 2, 4):
        for one in read_jsonl(tmp_path / "rollouts" / f"step-{step:08d}.jsonl.gz"):
            kept, whole = one.kept_tokens, given[one.id.partition("@")[0]]
            start = kept.kinds.index(kept.kinds.strip("0")[0])
            assert kept.ids[:start] == whole["input_ids"][:start] and "0" not in kept.kinds[start:]
            assert whole["span_ids"][start] == 1 and whole["span_ids"][start - 1] == 0, "the prefix ends before a turn"
            assert 1 <= len(kept.ids) - start <= 8
            starts.add((one.id.partition("@")[0], start))
            assert example_of(kept)["input_ids"] == kept.ids
    assert len(starts) > 3, "both turns of the trajectories are chosen"


@pytest.mark.parametrize(
    ("text", "format", "written", "turn", "kinds"),
    [
        (doors.demonstrations(1)[0].text, None, "Reasoning: a\nAction: b\nYou see", "Reasoning: a\nAction: b\n", "12"),
        (REACT, "react", "Thought 9: a\nAction 9: b\nObservation 9: c", "Thought 9: a\nAction 9: b\n", "12"),
        ("Room.\n> think: a\nOK.\n> go to b\nYou.\n", "alfworld", "> go to desk 1\nYou are", "> go to desk 1\n", "2"),
        (doors.demonstrations(1)[0].text, None, "I do not know\n", "I do not know\n", "1"),
    ],
)
def test_a_turn_ends_with_its_action_in_every_format_of_lines(text, format, written, turn, kinds):
    source = PrefixReplay([Trajectory(id="t", text=text)], TOKENIZER, format=format, engine=Written(written))
    played = source.play(None, rollout_of(episodes=4))
    for one in played:
        kept = one.kept_tokens
        start = len(kept.kinds) - len(kept.kinds.lstrip("0"))
        assert TOKENIZER.decode(kept.ids[start:]) == turn
        assert "".join(dict.fromkeys(kept.kinds[start:])) == kinds
        assert one.extra["acted"] == ("2" in kinds)


def test_a_conversation_needs_the_stop_token():
    tokenizer = doors.toy_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
        "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
    )
    messages = [
        {"role": "user", "content": "Open door 2."},
        {"role": "assistant", "content": "I look."},
        {"role": "user", "content": "You see door 2."},
        {"role": "assistant", "content": "I open door 2."},
    ]
    ids = [*tokenizer("Hi\nthere", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    engine = Written("")
    engine._ids = ids
    source = PrefixReplay([Trajectory(id="t", messages=messages)], tokenizer, engine=engine)
    for one in source.play(None, rollout_of(episodes=4)):
        kept = one.kept_tokens
        assert kept.ids[-len(ids) :] == ids and "0" not in kept.kinds[-len(ids) :]
        before = tokenizer.decode(kept.ids[: -len(ids)])
        assert before.endswith("<bos>assistant\n") and not kept.kinds[: -len(ids)].strip("0")
    assert {len(turn.prefix) for turn in engine.asked} == {len(turn.prefix) for turn in engine.asked[:4]}


def test_processes_split_the_turns():
    source = PrefixReplay(doors.demonstrations(), TOKENIZER, engine=Written("Action: look\n"))
    whole = source.play(None, rollout_of(episodes=7))
    parts = [source.play(None, rollout_of(episodes=7, rank=rank, processes=3)) for rank in range(3)]
    assert sorted(one.id for part in parts for one in part) == sorted(one.id for one in whole)
    assert [len(part) for part in parts] == [3, 2, 2]


def test_rows_of_a_batch_are_written_as_alone():
    """Different prefixes, ends and seeds; a row that ends early leaves the batch."""
    model = tiny_model("llama", len(TOKENIZER))
    texts = ["You see door 1.\n", "Action:", "Your task is to: open door 12.\nReasoning: The key", "You win.\n"] * 2
    turns = [
        Turn(TOKENIZER(text)["input_ids"], number, 3 + 2 * number, lambda written: 20 in written)
        for number, text in enumerate(texts)
    ]
    together = write_turns(model, TOKENIZER, turns, temperature=1.0, batch_size=8)
    alone = [write_turns(model, TOKENIZER, [turn], temperature=1.0, batch_size=1)[0] for turn in turns]
    assert together == alone
    assert [len(written) <= turn.most for written, turn in zip(together, turns)] == [True] * 8
    assert len({tuple(written) for written in together}) == 8, "equal texts with other seeds differ"
    greedy = write_turns(model, TOKENIZER, turns[:1], temperature=0.0, batch_size=1)[0]
    ids = torch.tensor([turns[0].prefix])
    for token in greedy:
        assert token == int(model(input_ids=ids).logits[0, -1].argmax())
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_prefixes_that_leave_no_room_are_left_out():
    source = PrefixReplay(doors.demonstrations(1), TOKENIZER, max_turn_tokens=20, engine=Written("Action: look\n"))
    [lesson] = source._lessons
    first, second = lesson.starts
    source.check(SimpleNamespace(max_length=first + 20))
    assert [one.starts for one in source._lessons] == [[first]] and second > first
    with pytest.raises(InputError, match="trajectories: expected a turn of a model within max_length"):
        source.check(SimpleNamespace(max_length=first + 19))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_turn_tokens": 0}, "max_turn_tokens: expected at least 1"), ({"temperature": -1.0}, "temperature: expected 0")],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        PrefixReplay(doors.demonstrations(), TOKENIZER, **options)
