"""Token ids kept from play: a training gets exactly the ids that the model read and wrote, with the right labels."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sad
from sad.agents.cleaning import clean, kinds_of_lines
from sad.agents.collect import collect
from sad.agents.rollout import rollout
from sad.trajectories.encode import encode_with_segmentation
from sad.trajectories.kept import token_offsets

from .toy import Doors, ScriptedModel, tiny_model, toy_tokenizer

SCRIPT = "Reasoning: I look.\nAction: look\nReasoning: Door 2 it is.\nAction: open door 2\n"
CHATML = (
    "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer()


def scripted(tokenizer, script: str = SCRIPT, **options):
    env = Doors()
    return rollout(ScriptedModel(tokenizer, script), tokenizer, env, env.tasks[1:2], **options)[0]


class Read:
    """Records every token that a model reads, by episode: the rows of a batch in their order."""

    def __init__(self, model) -> None:
        self.rows: list[list[int]] = []
        model.register_forward_pre_hook(self.hook, with_kwargs=True)

    def hook(self, model, args, kwargs) -> None:
        for row, ids in enumerate(kwargs["input_ids"].tolist()):
            if len(self.rows) <= row:
                self.rows.append([])
            self.rows[row] += ids


def test_training_on_1000_episodes_gets_the_ids_of_the_play(tokenizer, tmp_path):
    """A random model writes text whose new tokenization differs in many episodes; the kept ids never do."""
    model = tiny_model("gpt2", len(tokenizer), acts=True, tokenizer=tokenizer)
    env = Doors()
    options = {"max_steps": 2, "max_turn_tokens": 8, "batch_size": 504, "samples": 84, "temperature": 1.5}
    played = {}

    def keep(trajectory):
        played[trajectory.id] = trajectory.kept_tokens.ids

    trajectories = collect(model, tokenizer, env, env.tasks, on_trajectory=keep, **options)
    sad.write_jsonl(tmp_path / "played.jsonl", trajectories)
    read = sad.read_trajectories(tmp_path / "played.jsonl")
    assert len(read) == 1008 and read == trajectories
    corpus = sad.encode_all(read, tokenizer, say=lambda message: None)
    assert corpus.kept == 1008 and not corpus.not_kept
    examples = dict(zip(corpus.ids, corpus.examples))
    assert len(examples) > 900
    assert [key for key, example in examples.items() if example["input_ids"] != played[key]] == []
    again = sad.encode_all(read, tokenizer, kept_ids="never", add_eos=False, say=lambda message: None)
    differ = sum(example["input_ids"] != played[key] for key, example in zip(again.ids, again.examples))
    assert differ > 100 and again.kept == 0, "the text alone would have done: the test shows nothing"


def test_kept_ids_are_what_the_model_read(tokenizer):
    model = tiny_model("gpt2", len(tokenizer), acts=True, tokenizer=tokenizer)
    read, env = Read(model), Doors()
    episode = rollout(model, tokenizer, env, env.tasks[4:5], max_steps=4, max_turn_tokens=12)[0]
    ids = episode.kept_tokens.ids
    assert ids == episode.token_ids and len(episode.actions) >= 2
    assert read.rows[0] == ids[: len(read.rows[0])] and len(ids) - len(read.rows[0]) < 20  # the end is not read


@pytest.mark.parametrize("observe", [False, True])
@pytest.mark.parametrize("prefix", [True, False])
def test_labels_equal_those_of_the_text(tokenizer, observe, prefix):
    trajectory = scripted(tokenizer).to_trajectory()
    options = {"add_eos": False, "include_prefix": prefix, "observe": observe}
    kept = sad.encode_all([trajectory], tokenizer, **options).examples
    text = sad.encode_all([trajectory], tokenizer, kept_ids="never", **options).examples
    assert kept == text


def test_uncleaned_lines_have_the_labels_of_the_cleaned_ones(tokenizer):
    script = "Thought 1: I look.\nStill here. **Action:** `look`\nReasoning: so\n\nAction: open door 2.\n"
    episode = scripted(tokenizer, script)
    assert "Thought" not in episode.text and episode.won
    example = sad.encode_all([episode.to_trajectory()], tokenizer).examples[0]

    def written(kind: int) -> str:
        return tokenizer.decode([i for i, k in zip(example["input_ids"], example["span_ids"]) if k == kind])

    assert written(1) == "Thought 1: I look.\nStill here. Reasoning: so\n\n"
    assert written(2) == "**Action:** `look`\nAction: open door 2.\n"


PIECES = ["Reasoning: a", " Action: b", "\nThought 2: c", " look", "\n```", "\n", "x", " **Answer:** 4"]


@given(st.lists(st.sampled_from(PIECES)))
def test_parts_of_a_turn_cover_it(pieces):
    turn = "".join(pieces)
    parts = kinds_of_lines(turn)
    assert "".join(turn[start:end] for start, end, _ in parts) == turn
    prefixes = {line.partition(" ")[0] for line in clean(turn).splitlines() if line.startswith(("Reason", "Act", "Answ"))}
    assert prefixes <= {prefix for _, _, prefix in parts}


def test_a_prompt_is_cut_unless_it_is_asked_for(tokenizer):
    prompt = "You open doors.\nAction: look"
    plain, prompted = scripted(tokenizer), scripted(tokenizer, prompt=prompt)
    kept = prompted.kept_tokens
    assert tokenizer.decode(kept.ids[slice(*kept.prompt)]) == f"{prompt}\n\n"
    corpora = [sad.encode_all([e.to_trajectory()], tokenizer, say=print) for e in (plain, prompted)]
    assert corpora[0].examples == corpora[1].examples
    whole = sad.encode_all([prompted.to_trajectory()], tokenizer, kept_ids="always").examples[0]
    assert whole["input_ids"] == prompted.token_ids
    assert (
        not any(whole["span_ids"][: kept.prompt[1]])
        and whole["span_ids"][kept.prompt[1] :] == (corpora[0].examples[0]["span_ids"])
    )


def test_a_conversation_is_kept_with_its_marks():
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = CHATML
    episode = scripted(tokenizer, "Action: open door 2", chat=True, prompt="Open.")  # the model stops with <eos>
    kept = episode.kept_tokens
    parts = {}
    for token, kind in zip(kept.ids, kept.kinds):
        parts[kind] = parts.get(kind, "") + tokenizer.decode([token])
    assert parts["2"] == "Action: open door 2<eos>"
    assert parts["3"] == "The door 2 is open.\nYou win."
    said = []
    trajectory = episode.to_trajectory()
    assert sad.encode_all([trajectory], tokenizer, say=said.append).kept == 0
    assert "1 trajectories with token ids of their play are tokenized anew: they are a conversation" in said[0]
    example = sad.encode_all([trajectory], tokenizer, kept_ids="always", observe=True).examples[0]
    assert example["input_ids"] == episode.token_ids
    assert "".join(map(str, example["span_ids"])) == kept.kinds


def test_ids_that_do_not_fit_are_not_used(tokenizer, make_other):
    trajectory = scripted(tokenizer).to_trajectory()
    text = sad.encode_all([trajectory], tokenizer, kept_ids="never").examples
    changed = dataclasses.replace(trajectory, text=trajectory.text.replace("I look", "I see"))
    spans = dataclasses.replace(trajectory, spans=[sad.Span(0, 3, sad.Span.ACT)])
    for one, other, reason in (
        (changed, tokenizer, "the text was changed after the play"),
        (trajectory, make_other, "they are of another tokenizer"),
        (spans, tokenizer, "a format or spans replace their kinds"),
    ):
        said = []
        corpus = sad.encode_all([one], other, say=said.append)
        assert corpus.kept == 0 and any(f"tokenized anew: {reason}" in line for line in said), said
    assert sad.encode_all([dataclasses.replace(trajectory, kept_tokens=None)], tokenizer).examples == text
    with pytest.raises(sad.InputError, match="kept_ids: expected one of auto, always, never, got 'yes'"):
        sad.encode_all([trajectory], tokenizer, kept_ids="yes")


@pytest.fixture
def make_other():
    """A tokenizer with fewer entries."""
    from tokenizers import Tokenizer

    tokenizer = toy_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["merges"] = []
    state["model"]["vocab"] = {
        token: number
        for number, token in enumerate(t for t in state["model"]["vocab"] if len(t) == 1 or t in ("<eos>", "<bos>"))
    }
    for token in state["added_tokens"]:
        token["id"] = state["model"]["vocab"][token["content"]]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": [1, "x"]}, "kept_tokens.ids: expected a list of token ids"),
        ({"kinds": "01"}, r"kept_tokens.kinds: expected \d+ digits from 0 to 3"),
        ({"kinds": None}, r"kept_tokens.kinds: expected \d+ digits"),
        ({"prompt": [0, 10**6]}, r"kept_tokens.prompt: expected \[start, stop\] of tokens of kind 0"),
        ({"chat": 1}, "kept_tokens.chat: expected true or false"),
        ({"text_digest": 3}, "kept_tokens: expected the keys text_digest"),
    ],
)
def test_a_damaged_record_is_refused(tokenizer, tmp_path, change, message):
    sad.write_jsonl(tmp_path / "t.jsonl", [scripted(tokenizer).to_trajectory()])
    record = json.loads((tmp_path / "t.jsonl").read_text())
    record["kept_tokens"] |= change
    (tmp_path / "t.jsonl").write_text(json.dumps(record))
    with pytest.raises(sad.InputError, match=message):
        sad.read_trajectories(tmp_path / "t.jsonl")


def test_long_episodes_are_cut_into_turns(tokenizer):
    trajectory = scripted(tokenizer).to_trajectory()
    whole, _ = encode_with_segmentation(trajectory, tokenizer)
    corpus = sad.encode_all([trajectory], tokenizer, max_length=40, long="turns")
    assert corpus.kept == 1 and len(corpus.examples) == 2
    labels = [label for example in corpus.examples for label in example["span_ids"] if label]
    assert labels == [label for label in whole.span_ids if label]


def test_ids_can_be_dropped(tokenizer):
    model, env = tiny_model("gpt2", len(tokenizer)), Doors()
    trajectory = collect(model, tokenizer, env, env.tasks[:1], keep_ids=False, max_steps=1, max_turn_tokens=4)[0]
    assert trajectory.kept_tokens is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_offsets_of_any_ids_follow_each_other(tokenizer, data):
    """Also where a character has several tokens, and where bytes are no character."""
    text = data.draw(st.text(max_size=12))
    ids = tokenizer(text)["input_ids"] + data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    decoded, offsets = token_offsets(tokenizer, ids)
    assert decoded == tokenizer.decode(ids)
    assert len(offsets) == len(ids)
    assert all(0 <= start <= end <= len(decoded) for start, end in offsets)
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(offsets))
    only_text, exact = token_offsets(tokenizer, tokenizer(text)["input_ids"])
    assert only_text == text and (not exact or exact[-1][1] == len(text))


def test_rollout_needs_no_gradient(tokenizer):
    with torch.enable_grad():
        assert scripted(tokenizer).kept_tokens.kinds.count("2") > 4
