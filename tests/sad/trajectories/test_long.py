"""Trajectories that are longer than the maximum length, and trajectories that cannot be used."""

from __future__ import annotations

import json
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sad
from sad import Span, Trajectory, encode_all
from sad.trajectories.long import windows
from sad.trajectories.options import context_tokens
from sad.trajectories.refused import Refused

R, A, O = int(Span.REASON), int(Span.ACT), int(Span.OBSERVE)
PROMPT = "You are in a kitchen. Find the mug. "
STEP = "\nReasoning: It is in {0}.\nAction: open {0}\nYou open {0}. It holds a lot of other things."


def text_of(steps: int, prompt: str = PROMPT) -> str:
    return prompt + "".join(STEP.format(f"drawer {number}") for number in range(steps))


@settings(deadline=None, max_examples=200)
@given(
    runs=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12)), min_size=1, max_size=12),
    max_length=st.integers(4, 40),
    share=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    head=st.integers(0, 5),
    turns=st.booleans(),
)
def test_every_supervised_token_is_in_one_window_with_its_context(runs, max_length, share, head, turns):
    groups, at = [], 0
    for gap, length in runs:
        groups.append(list(range(at + gap, at + gap + length)))
        at += gap + length
    positions = [position for group in groups for position in group]
    before = context_tokens(max_length, share)
    head = min(head, max_length - before - 1)
    found = windows(groups if turns else [positions], max_length, share, head)
    covered = []
    for window in found:
        assert window.head + window.stop - window.start <= max_length
        assert window.head <= min(head, positions[0]) and 0 <= window.start <= window.labelled < window.stop
        assert window.start >= window.head and (window.start > 0 or window.head == 0)
        assert window.start == 0 or window.start == window.head or window.labelled - window.start >= before
        assert window.labelled == 0 or window.head + window.labelled - window.start >= 1  # a token before the first label
        inside = [position for position in positions if window.labelled <= position < window.stop]
        assert not turns or any(set(inside) <= set(group) for group in groups)
        covered += inside
    assert covered == positions


@settings(deadline=None, max_examples=25)
@given(
    steps=st.integers(1, 6),
    max_length=st.integers(24, 90),
    long=st.sampled_from(["window", "turns"]),
    observe=st.booleans(),
    head=st.sampled_from([0, 6]),
)
def test_labels_are_those_of_the_whole_encoding(tokenizer, steps, max_length, long, observe, head):
    text = text_of(steps)
    whole = sad.encode(text, tokenizer, observe=observe)
    corpus = encode_all(
        [Trajectory("t", text)],
        tokenizer,
        max_length=max_length,
        long=long,
        long_head=head,
        observe=observe,
        say=lambda message: None,
    )
    kinds = {R, A, O} if observe else {R, A}
    labelled = [
        pair for x in corpus.examples for pair in zip(x["input_ids"], x["span_ids"], strict=True) if pair[1] in kinds
    ]
    assert labelled == [pair for pair in zip(whole.input_ids, whole.span_ids, strict=True) if pair[1] in kinds]
    assert corpus.supervised_cut == corpus.truncated == 0 and corpus.supervised == len(labelled)
    assert all(len(example["input_ids"]) <= max_length for example in corpus.examples)
    assert all(example["input_ids"][:head] == whole.input_ids[:head] for example in corpus.examples)


def test_turns_are_one_example_each_with_the_history_that_fits(tokenizer):
    text = text_of(4)
    whole = sad.encode(text, tokenizer)
    runs = [len(list(group)) for kind, group in groupby(whole.span_ids, bool) if kind]
    assert len(runs) == 4  # a thought and its action are one turn
    length = len(whole.input_ids) - 1
    corpus = encode_all([Trajectory("t", text)], tokenizer, max_length=length, long="turns", say=print)
    assert [sum(map(bool, example["span_ids"])) for example in corpus.examples] == runs
    for example in corpus.examples:
        assert example["input_ids"] == whole.input_ids[: len(example["input_ids"])]  # all history fits
        assert example["span_ids"][-1] == A
    assert corpus.ids == ["t"] * 4 and "1 trajectories in 4 examples (1 long ones split)" in corpus.summary()
    unprefixed = encode_all(
        [Trajectory("t", text)], tokenizer, max_length=length, long="turns", include_prefix=False, say=print
    )
    assert len(unprefixed.examples) == 4
    short = encode_all([Trajectory("t", text)], tokenizer, max_length=length + 1, long="turns", say=print)
    assert short.examples == [{"input_ids": whole.input_ids, "span_ids": whole.span_ids}]


def test_text_between_spans_separates_turns(tokenizer):
    text = "go there\nthe room\nstop here\n"
    own = Trajectory("t", text, spans=[Span(0, 9, Span.REASON), Span(9, 9, Span.ACT), Span(18, 28, Span.ACT)])
    length = len(sad.encode(own, tokenizer).input_ids)
    corpus = encode_all([own], tokenizer, max_length=length - 1, long="turns", say=print)
    said = [[token for token, kind in zip(x["input_ids"], x["span_ids"]) if kind] for x in corpus.examples]
    assert [tokenizer.decode(tokens) for tokens in said] == ["go there\n", "stop here\n"]


def test_turns_of_a_chat(make_tokenizer):
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    tokenizer = make_tokenizer(chat_template=template)
    messages = [{"role": "user", "content": "find the mug"}]
    for number in range(3):
        messages += [{"role": "assistant", "content": f"open {number}"}, {"role": "user", "content": "it is closed"}]
    whole = sad.encode(messages, tokenizer)
    corpus = encode_all(
        [Trajectory("t", messages=messages)], tokenizer, max_length=len(whole.input_ids) - 3, long="turns", say=print
    )
    said = [[token for token, kind in zip(x["input_ids"], x["span_ids"]) if kind] for x in corpus.examples]
    assert [tokenizer.decode(tokens) for tokens in said] == [f"open {number}<|im_end|>" for number in range(3)]


def test_what_is_cut_is_counted_before_anything_is_dropped(tokenizer):
    text = text_of(3)
    whole = sad.encode(text, tokenizer)
    first = next(position for position, kind in enumerate(whole.span_ids) if kind)
    supervised = sum(map(bool, whole.span_ids))
    said = []
    corpus = encode_all([Trajectory("t", text), Trajectory("p", "nothing")], tokenizer, max_length=first, say=said.append)
    assert (corpus.truncated, corpus.supervised, corpus.supervised_cut) == (1, supervised, supervised)
    assert (
        f"1 truncated ({len(whole.input_ids) - first} tokens cut, {supervised} of {supervised} supervised)"
        in corpus.summary()
    )
    assert "2 without a supervised token dropped, 1 of them cut before it" in corpus.summary()
    window = encode_all([Trajectory("t", text)], tokenizer, max_length=len(whole.input_ids) - 5, long="window", say=print)
    assert window.split == 1 and window.supervised_cut == 0 and corpus.split == 0
    [warning] = [line for line in said if "max_length" in line]
    assert "(100%)" in warning and "--long window" in warning
    with pytest.raises(sad.InputError, match=f"max_length: expected .* cuts all {supervised} supervised tokens"):
        sad.encode(text, tokenizer, max_length=first)


def test_a_loss_above_a_tenth_of_the_supervised_tokens_is_a_warning(tokenizer):
    text = "Reasoning: go\nAction: " + "x y " * 60
    labels = sad.encode(text, tokenizer).span_ids
    total = sum(map(bool, labels))
    assert total == len(labels)
    for cut, expected in ((total // 10, 0), (total // 10 + 1, 1)):
        said = []
        encode_all([Trajectory("t", text)], tokenizer, max_length=total - cut, say=said.append)
        assert len(said) == expected
    with pytest.warns(UserWarning, match="max_length cuts"):
        encode_all([Trajectory("t", text)], tokenizer, max_length=20)


def test_a_kind_without_a_token_is_a_warning(tokenizer):
    with pytest.warns(UserWarning, match="no token is reasoning in 1 examples.*--format"):
        encode_all(
            [Trajectory("t", "> think: where is it\n> go\n", format="webshop"), Trajectory("u", "Action: x")], tokenizer
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long": "cut"}, "long: expected one of truncate, window, turns, got 'cut'"),
        ({"long_context": 1.0}, "long_context: expected a share"),
        ({"long_context": True}, "long_context: expected a share"),
        ({"long_head": -1}, "long_head: expected a number of tokens"),
        ({"long": "window", "max_length": 20, "long_head": 15}, "long_head: .* below max_length 20, got 20 tokens"),
        ({"long": "turns", "max_length": 1}, "below max_length 1"),
        ({"on_error": "ignore"}, "on_error: expected stop or skip"),
    ],
)
def test_bad_options(tokenizer, options, message):
    with pytest.raises(sad.InputError, match=message):
        encode_all([Trajectory("t", "Action: x")], tokenizer, **options)


def bad(number: int) -> Trajectory:
    return Trajectory(f"bad-{number}", f"Action: {number}", spans=[Span(0, 99, Span.ACT)], where=f"file, line {number}")


def test_refused_trajectories_stop_or_are_counted(tokenizer):
    good = Trajectory("good", "Reasoning: a\nAction: b")
    with pytest.raises(sad.InputError, match=r"file, line 1, trajectory 'bad-1', spans: .*--on-error skip"):
        encode_all([good, bad(1)], tokenizer)
    with pytest.raises(sad.InputError, match=r"4 of 5 that cannot be used:(\n  file, line \d.*){3}\n  and 1 more") as caught:
        encode_all([bad(1), good, bad(2), bad(3), bad(4)], tokenizer)
    assert ".." not in str(caught.value)
    assert "bad-4" not in str(caught.value)
    corpus = encode_all([bad(1), good, bad(2)], tokenizer, on_error="skip")
    assert corpus.ids == ["good"] and [item.id for item in corpus.refused] == ["bad-1", "bad-2"]
    assert ", 2 refused, " in corpus.summary()


GOOD = json.dumps({"text": "Action: x"})


@pytest.mark.parametrize(
    ("lines", "read", "refused"),
    [
        ([GOOD, "{broken", GOOD, '{"text": 5}', "7"], 2, ["line 2", "line 4", "line 5"]),
        (["{broken", GOOD], 1, ["line 1"]),
        (["[", GOOD + ",", "{"], 0, ["line 3"]),  # one broken array, one error
        (["{", '"text": "Action: x"', "}"], 1, []),
        (['[{"role": "user", "content": "a"}]'] * 3, 3, []),
    ],
    ids=["lines", "first line", "broken array", "one object", "lists of messages"],
)
def test_records_that_cannot_be_read_are_collected(tmp_path, lines, read, refused):
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(lines))
    found: list[Refused] = []
    trajectories = sad.read_trajectories(path, refused=found)
    assert len(trajectories) == read
    assert [item.id for item in found] == [f"some.jsonl:{where.split()[1]}" for where in refused]
    assert all(f"{path}, {where}" in str(item.error) for item, where in zip(found, refused, strict=True))
    if refused:
        with pytest.raises(sad.InputError, match=refused[0]):
            sad.read_trajectories(path)
