"""Encoding: token ids and labels of trajectories."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sad
from sad import Span, Trajectory, encode, encode_all

R, A, O = int(Span.REASON), int(Span.ACT), int(Span.OBSERVE)
TEXT = "You see.\nReasoning: find it — 日本 😀.\n\nAction: go to kitchen\nObservation is here.\nAction: finish"

BITS = ["Reasoning: ", "Action: ", "Answer:", "\n", "\r\n", " ", "go", "é", "😀", "x"]


def labels_by_line(text: str, encoded: sad.Encoded) -> list[set[int]]:
    """Returns the labels of the tokens that begin in each line, without zero-width tokens."""
    lines: list[set[int]] = [set() for _ in text.splitlines()]
    for (begin, end), kind in zip(encoded.offsets, encoded.span_ids):
        if end > begin:
            lines[text.count("\n", 0, begin)].add(kind)
    return lines


def test_labels_follow_the_spans_and_eos_ends_the_last_span(tokenizer):
    encoded = encode(TEXT, tokenizer)
    assert labels_by_line(TEXT, encoded) == [{0}, {R}, {0}, {A}, {0}, {A}]
    assert encoded.input_ids[-1] == tokenizer.eos_token_id and encoded.span_ids[-1] == A
    assert tokenizer.decode(encoded.input_ids[:-1]) == TEXT
    line_ends = [kind for (b, e), kind in zip(encoded.offsets, encoded.span_ids) if TEXT[b:e] == "\n"]
    assert line_ends == [0, R, 0, A, 0]


def test_observations_are_labelled_on_request(tokenizer):
    encoded = encode(TEXT, tokenizer, observe=True)
    assert labels_by_line(TEXT, encoded) == [{0}, {R}, {0}, {A}, {O}, {A}]
    assert O not in encode(TEXT, tokenizer).span_ids
    ended = encode(TEXT + "\nYou stop.", tokenizer, observe=True)
    assert ended.span_ids[-2:] == [O, 0]  # the EOS does not belong to the environment


def test_a_token_across_an_action_and_an_observation_belongs_to_the_action(make_tokenizer):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["</s>", "Action: go", "\nThe room", "."]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="."))
    core.pre_tokenizer = pre_tokenizers.Split("\nThe room", "isolated")
    wide = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    encoded = encode("Action: go\nThe room.", wide, observe=True)
    assert encoded.offsets[:3] == [(0, 10), (10, 19), (19, 20)]
    assert encoded.span_ids == [A, A, O, 0]  # 1 character of the action, 8 of the observation


def test_own_observations_are_always_labelled(tokenizer):
    own = Trajectory("t", "go\nseen\n", spans=[Span(3, 8, O), Span(0, 3, Span.ACT)])
    assert labels_by_line(own.text, encode(own, tokenizer)) == [{A}, {O}]
    found = own.segmented()
    assert found.spans == [Span(0, 3, Span.ACT)] and found.observations == [Span(3, 8, Span.OBSERVE)]


def test_eos_after_a_line_terminator_has_label_0(tokenizer):
    for end in ("\n", "\r\n", "\nYou took it."):
        assert encode("Action: take" + end, tokenizer).span_ids[-1] == 0
    assert encode("Action: take  ", tokenizer).span_ids[-1] == A
    assert len(encode(TEXT, tokenizer, add_eos=False).input_ids) == len(encode(TEXT, tokenizer).input_ids) - 1


def test_special_tokens_added_by_the_tokenizer(make_tokenizer):
    from tokenizers import processors

    tokenizer = make_tokenizer(bos=True)
    encoded = encode("Action: go", tokenizer)
    assert encoded.input_ids[0] == tokenizer.bos_token_id and encoded.span_ids[0] == 0
    assert encoded.span_ids[1:] == [A] * (len(encoded.input_ids) - 1)
    both = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.backend_tokenizer.post_processor = both  # this post-processor appends the EOS: no second one
    assert encode("Action: go", tokenizer)[:2] == encoded[:2]


def test_byte_tokens_of_a_character_share_its_label(tokenizer):
    """The tokenizer splits 日 into bytes with overlapping offsets."""
    text = "日\nAction: 日 b\n日"
    encoded = encode(text, tokenizer)
    shared = [o for o in encoded.offsets if encoded.offsets.count(o) > 1]
    assert len(shared) >= 9
    assert all(
        kind == (A if 2 <= begin < text.rindex("日") else 0)
        for (begin, end), kind in zip(encoded.offsets, encoded.span_ids)
        if end > begin
    )


def test_truncation_is_counted(tokenizer):
    whole = encode(TEXT, tokenizer)
    cut = encode(TEXT, tokenizer, max_length=20)
    assert (cut.input_ids, cut.span_ids, cut.offsets) == (whole.input_ids[:20], whole.span_ids[:20], whole.offsets[:20])
    assert cut.truncated == len(whole.input_ids) - 20 and whole.truncated == 0
    assert encode(TEXT, tokenizer, max_length=len(whole.input_ids)) == whole
    assert encode(TEXT, tokenizer, max_length=len(whole.input_ids) - 1).input_ids[-1] != tokenizer.eos_token_id


@settings(deadline=None, max_examples=60)
@given(text=st.lists(st.sampled_from(BITS), max_size=40).map("".join))
def test_every_token_that_touches_a_span_has_its_label(tokenizer, text):
    encoded = encode(text, tokenizer)
    spans = Trajectory(text=text).segmented().spans
    for (begin, end), kind in zip(encoded.offsets[:-1], encoded.span_ids):
        touching = [span for span in spans if min(end, span.end) > max(begin, span.start)]
        best = max(touching, key=lambda span: min(end, span.end) - max(begin, span.start), default=None)
        assert kind == (best.kind if best else 0)


def test_encode_all_counts_truncated_dropped_and_unparsed(tokenizer):
    corpus = encode_all(
        [
            Trajectory("a", TEXT),
            Trajectory("b", "nothing of interest"),
            Trajectory("c", "Reasoning:\nAction: go\n"),
            Trajectory("d", "a long prompt " * 30 + "\nAction: go\n"),
            Trajectory("e", "Thought: x\n", format="react"),
        ],
        tokenizer,
        max_length=60,
    )
    assert corpus.ids == ["a", "c", "e"]
    assert corpus.examples[0] == dict(zip(("input_ids", "span_ids"), encode(TEXT, tokenizer, max_length=60)[:2]))
    assert (corpus.truncated, corpus.empty) == (1 + int(encode(TEXT, tokenizer, max_length=60).truncated > 0), 2)  # "d" too
    assert [(name, item.line) for name, item in corpus.unparsed] == [("b", 1), ("c", 1)]
    assert corpus.summary().startswith("3 trajectories, ") and "2 without a supervised token dropped" in corpus.summary()


def test_encode_all_with_observations(tokenizer):
    only_seen = Trajectory("o", "seen", spans=[Span(0, 4, O)])
    plain, found = (encode_all([Trajectory("a", TEXT), only_seen], tokenizer, observe=observe) for observe in (False, True))
    assert plain.ids == ["a"] and plain.empty == 1 and found.ids == ["a", "o"] and found.empty == 0
    assert "observation" not in plain.summary()
    count = sum(example["span_ids"].count(O) for example in found.examples)
    assert count > 0 and f" action, {count} observation, " in found.summary()
    tokens = sum(len(example["input_ids"]) for example in plain.examples)
    ids = [kind for example in plain.examples for kind in example["span_ids"]]
    assert (
        f"{tokens} tokens: {ids.count(R)} reasoning, {ids.count(A)} action, {ids.count(0)} unsupervised" in plain.summary()
    )


def test_bad_input(tokenizer):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    class Slow:
        is_fast = False

    with pytest.raises(sad.InputError, match="tokenizer: expected a fast tokenizer, got Slow"):
        encode(TEXT, Slow())
    with pytest.raises(sad.InputError, match="max_length: expected at least 1, got 0"):
        encode(TEXT, tokenizer, max_length=0)
    with pytest.raises(sad.InputError, match="format of trajectory 'x': expected one of"):
        encode_all([Trajectory("x", TEXT, format="none")], tokenizer)
    with pytest.raises(sad.InputError, match="expected a tokenizer with a vocabulary"):
        encode(TEXT, PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())))
