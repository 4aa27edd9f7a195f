"""Recorded trajectories of real models, checked by criteria that are independent of the segmenter."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch

import sad
from sad import Span, encode, read_jsonl, span_ids_from_offsets

R, A, O = Span.REASON, Span.ACT, Span.OBSERVE

# One stateless expression per file for the first line of a thought and of an action.
HOTPOT = (r"(?m)^Thought ?\d*: *\S", r"(?m)^Action ?\d*: *\S")
ALFWORLD = (r"(?mi)^> ?think:", r"(?mi)^> ?(?!think:|ActionPath)\w")
WEBSHOP = (r"think\[", r"Action: (?!reset|think)")
FILES = {
    "alfworld/react_fewshot": ("alfworld", ALFWORLD),
    "alfworld/knowagent_llama2_13b_d0": ("alfworld", ALFWORLD),
    "alfworld/official_engine_valid_seen_expert": ("alfworld", ALFWORLD),
    "webshop/react_davinci002": ("webshop", WEBSHOP),
    "webshop/original_env_scripted": ("webshop", WEBSHOP),
    "hotpotqa/fireact_gpt4_train": ("react", HOTPOT),
    "hotpotqa/fireact_dev_llama2_13b": ("react", HOTPOT),
    "hotpotqa/reflexion_react_base": ("react", HOTPOT),
    "hotpotqa/knowagent_llama2_13b_d0": ("react", HOTPOT),
}
# The first line of an answer of the environment, after the first line of the model.
OBSERVATIONS = {
    "react": r"(?m)^Observation ?\d*: *\S",
    "alfworld": r"(?m)^[^>\s].*(?:\n\s*[^>\s].*)*",
    "webshop": r"(?m)^Observation:",
}
ENVIRONMENT = r"OK\.|Nothing happens\.|You |On the |The |Your task|Observation|Question|Instruction|(> *)?ActionPath|Episode"


@pytest.fixture(params=sorted(FILES))
def real(request, shared_data):
    format, patterns = FILES[request.param]
    return read_jsonl(shared_data / f"{request.param}.jsonl.gz"), format, patterns


def test_counts_agree_with_plain_expressions(real):
    """At least 97 % of the trajectories have spans of a kind if the expression matches, and as many as it matches."""
    trajectories, format, patterns = real
    spans = [trajectory.segmented(format).spans for trajectory in trajectories]
    for kind, pattern in zip((R, A), patterns):
        seen = [len(re.findall(pattern, trajectory.text)) for trajectory in trajectories]
        found = [sum(span.kind is kind for span in row) for row in spans]
        assert sum(f > 0 for f, s in zip(found, seen) if s) >= 0.97 * sum(s > 0 for s in seen)
        assert sum(f == s for f, s in zip(found, seen)) >= 0.97 * len(seen)
    both = [all(re.search(pattern, trajectory.text) for pattern in patterns) for trajectory in trajectories]
    whole = [{span.kind for span in row} == {R, A} for row, there in zip(spans, both) if there]
    assert sum(whole) >= 0.97 * len(whole)


def test_spans_are_whole_lines_of_the_model(real):
    """From the first character of the prefix through the line terminator; no line of the environment."""
    trajectories, format, _ = real
    for trajectory in trajectories:
        text = trajectory.text
        for start, end, _ in trajectory.segmented(format).spans:
            assert start == 0 or text[:start].rstrip(" ").endswith("\n")
            assert end == len(text) or text[end - 1] == "\n"
            assert text[start:end].count("\n") <= 1  # these files have no thought or action of several lines
            assert not re.match(ENVIRONMENT, text[start:end])


def test_observations_agree_with_plain_expressions(real):
    """As many as the expression matches after the first span, in 97 % of the trajectories; none overlaps a span."""
    trajectories, format, _ = real
    agree = 0
    for trajectory in trajectories:
        found = trajectory.segmented(format)
        everything = sorted(found.spans + found.observations)
        assert all(a.end <= b.start for a, b in pairwise(everything))
        begin = found.spans[0].end if found.spans else len(found.text)
        assert all(span.start >= begin for span in found.observations)
        agree += len(re.findall(OBSERVATIONS[format], found.text[begin:])) == len(found.observations)
    assert agree >= 0.97 * len(trajectories)


def test_observations_leave_the_labels_of_the_model_alone(real, gpt2_tokenizer):
    """No label 1 or 2 changes, and every other token that touches an observation has label 3."""
    trajectories, format, _ = real
    for trajectory in trajectories[::10]:
        plain, found = (encode(trajectory, gpt2_tokenizer, format=format, observe=observe) for observe in (False, True))
        assert [0 if kind == O else kind for kind in found.span_ids] == plain.span_ids
        inside = torch.zeros(len(trajectory.text) + 1, dtype=torch.int64)
        for start, end, _ in trajectory.segmented(format).observations:
            inside[start + 1 : end + 1] = 1
        before, offsets = inside.cumsum(0), torch.tensor(found.offsets)
        touched = (before[offsets[:, 1]] > before[offsets[:, 0]]) & (torch.tensor(plain.span_ids) == 0)
        assert torch.equal(torch.tensor(found.span_ids) == O, touched)
        assert touched.any() or not trajectory.segmented(format).observations


def test_tokens_are_labelled_if_they_touch_a_span(real, gpt2_tokenizer):
    """If and only if; at most one label per token. Batches of every fourth trajectory."""
    trajectories, format, _ = real
    trajectories = trajectories[::4]
    for first in range(0, len(trajectories), 100):
        texts, spans, *_ = zip(*(trajectory.segmented(format) for trajectory in trajectories[first : first + 100]))
        rows = gpt2_tokenizer(list(texts), return_offsets_mapping=True, verbose=False)["offset_mapping"]
        offsets = torch.zeros(len(rows), max(map(len, rows)), 2, dtype=torch.int64)
        inside = torch.zeros(len(rows), max(map(len, texts)) + 1, dtype=torch.int64)
        for row, (tokens, own) in enumerate(zip(rows, spans)):
            offsets[row, : len(tokens)] = torch.tensor(tokens)
            for start, end, _ in own:
                inside[row, start + 1 : end + 1] = 1
        before = inside.cumsum(1)
        touched = before.gather(1, offsets[..., 1]) > before.gather(1, offsets[..., 0])
        ids = span_ids_from_offsets(offsets, spans)
        assert torch.equal(ids > 0, touched)
        reason, act = span_ids_from_offsets(offsets, spans, masks=True)
        assert int((reason.int() + act.int()).max()) == 1
        assert torch.equal(reason | act, touched)


def test_line_ends_are_labelled(real, gpt2_tokenizer):
    trajectories, format, _ = real
    for trajectory in trajectories[::10]:
        encoded = encode(trajectory, gpt2_tokenizer, format=format)
        label = {c: kind for (b, e), kind in zip(encoded.offsets, encoded.span_ids) for c in range(b, e)}
        assert all(label[start] == label[end - 1] == kind for start, end, kind in trajectory.segmented(format).spans)
        assert encoded.input_ids[-1] == gpt2_tokenizer.eos_token_id


def test_eos_of_a_text_that_ends_inside_a_span_is_labelled(real, gpt2_tokenizer):
    trajectories, format, _ = real
    for trajectory in trajectories[::25]:
        last = trajectory.segmented(format).spans[-1]
        text = trajectory.text[: last.end].rstrip("\n")
        encoded = encode(text, gpt2_tokenizer, format=format)
        assert encoded.span_ids[-2:] == [int(last.kind)] * 2
        assert encode(text + "\n", gpt2_tokenizer, format=format).span_ids[-2:] == [int(last.kind), 0]


def test_gpt2_byte_tokens(gpt2_tokenizer):
    """GPT-2 splits characters into bytes with overlapping offsets; every byte token touches the span."""
    text = "Action: 日本 ʕ•ᴥ•ʔ\nobs"
    encoded = encode(text, gpt2_tokenizer)
    overlapping = [(a, b) for a, b in zip(encoded.offsets, encoded.offsets[1:]) if b[0] < a[1]]
    assert overlapping
    assert [kind for (begin, end), kind in zip(encoded.offsets, encoded.span_ids) if end > begin] == [
        int(A) if begin <= text.index("\n") else 0 for begin, end in encoded.offsets if end > begin
    ]


def test_unknown_format_in_a_file_raises(shared_data):
    trajectory = read_jsonl(shared_data / "alfworld/react_fewshot.jsonl.gz", limit=1)[0]
    with pytest.raises(sad.InputError, match=r"format of trajectory 'alfworld/react_fewshot/0000'.*got 'alfworld-react'"):
        trajectory.segmented()
