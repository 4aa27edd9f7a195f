"""Keys of a message that exclude it or give it a weight: the weights of its tokens, and the column of a training set."""

from __future__ import annotations

import pytest

import sad
from sad.trajectories.training_keys import message_weight

from .test_sources import TEMPLATE


def conversation(*weights) -> sad.Trajectory:
    messages = []
    for number, weight in enumerate(weights):
        messages.append({"role": "user", "content": f"question {number}"})
        messages.append(
            {"role": "assistant", "content": f"answer {number}", **({} if weight is None else {"weight": weight})}
        )
    return sad.Trajectory("t", messages=messages)


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer(chat_template=TEMPLATE)


@pytest.mark.parametrize(
    ("keys", "weight"),
    [
        ({}, 1.0),
        ({"weight": 0.25}, 0.25),
        ({"loss": 0.5}, 0.5),
        ({"weight": 2}, 2.0),
        ({"loss": 2.31}, 1.0),  # a loss that was logged
        ({"weight": 0.5, "loss": 0.5}, 0.25),
        ({"weight": 0.5, "train": False}, 0.0),
        ({"weight": 0.5, "is_demo": True}, 0.0),
        ({"is_demo": False, "loss_mask": [1, 1, 1]}, 1.0),
        ({"loss_mask": [0.5, 0.5]}, 0.5),
        ({"weight": None, "loss": [], "train": "no"}, 0.0),
    ],
)
def test_the_weight_of_a_message(keys, weight):
    assert message_weight(keys, "m") == weight


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({"weight": -1}, "m.weight: expected true, false or a number >= 0, got -1"),
        ({"loss": float("nan")}, "m.loss: expected true, false or a number >= 0, got nan"),
        ({"weight": "half"}, "m.weight: expected true, false or a number >= 0, got 'half'"),
        ({"loss_mask": [1, 0.5]}, "m.loss_mask: expected one value for the message"),
    ],
)
def test_a_wrong_weight_is_refused(keys, error):
    with pytest.raises(sad.InputError, match=error):
        message_weight(keys, "m")


def test_the_tokens_of_a_message_have_its_weight(tokenizer):
    encoded = sad.encode(conversation(0.25, None, 0), tokenizer)
    text = sad.segment(conversation(0.25, None, 0).messages, "chat", tokenizer=tokenizer).text
    middle = text.index("question 1")
    for (start, _), label, weight in zip(encoded.offsets, encoded.span_ids, encoded.token_weights):
        assert weight == (0.25 if label and start < middle else 1.0)
    labelled = [start < middle for (start, _), label in zip(encoded.offsets, encoded.span_ids) if label]
    assert set(labelled) == {True, False} and text.index("question 2") > encoded.offsets[encoded.span_ids.index(2)][0]
    assert {weight for label, weight in zip(encoded.span_ids, encoded.token_weights) if not label} == {1.0}
    assert sad.encode(conversation(None, True), tokenizer).token_weights is None


def test_all_examples_of_a_training_set_have_the_column_or_none(tokenizer):
    corpus = sad.encode_all([conversation(None), conversation(0.25), conversation(None)], tokenizer, say=print)
    assert [set(example["token_weights"]) for example in corpus.examples] == [{1.0}, {0.25, 1.0}, {1.0}]
    supervised = sum(label > 0 for label in corpus.examples[1]["span_ids"])
    assert f"({supervised} with a token weight of 0.25); " in corpus.summary()
    batch = sad.SpanCollator()(corpus.examples)
    assert (batch["token_weights"][batch["span_ids"] == 2].unique() == batch["token_weights"].new_tensor([0.25, 1])).all()
    plain = sad.encode_all([conversation(None)], tokenizer, say=print)
    assert "token_weights" not in plain.examples[0] and "weight" not in plain.summary()
    mixed = sad.encode_all([conversation(0.25, 0.5)], tokenizer, say=print).summary()
    assert "with a token weight of 0.25 to 0.5" in mixed


@pytest.mark.parametrize("long", ["truncate", "window", "turns"])
def test_a_cut_keeps_the_weight_of_every_token(tokenizer, long):
    weights = [0.5, 1, 0.25]
    whole = sad.encode(conversation(*weights), tokenizer)
    corpus = sad.encode_all([conversation(*weights)], tokenizer, max_length=40, long=long, say=print)
    kept = [
        weight
        for example in corpus.examples
        for label, weight in zip(example["span_ids"], example["token_weights"])
        if label
    ]
    expected = [weight for label, weight in zip(whole.span_ids, whole.token_weights) if label]
    assert kept == (expected if long != "truncate" else expected[: len(kept)]) and kept


def test_a_template_that_drops_thoughts_keeps_the_weights(make_tokenizer):
    template = TEMPLATE.replace("m.reasoning_content is defined", "m.reasoning_content is defined and loop.last")
    trajectory = conversation(0.5, 0.25)
    for message in trajectory.messages[1::2]:
        message["reasoning_content"] = "why"
    corpus = sad.encode_all([trajectory], make_tokenizer(chat_template=template), say=print)
    found = [{w for label, w in zip(x["span_ids"], x["token_weights"]) if label} for x in corpus.examples]
    assert found == [{0.5}, {0.25}]
