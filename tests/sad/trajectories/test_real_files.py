"""Every file of trajectories that real models wrote, against criteria that know nothing of the segmenter."""

from __future__ import annotations

import re

import pytest
import torch

import sad
from sad import Span, encode, read_jsonl, span_ids_from_offsets

R, A = Span.REASON, Span.ACT

# What a reader would call a thought and an action, found crudely: no state, no lookahead, one expression per file.
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
ENVIRONMENT = r"OK\.|Nothing happens\.|You |On the |The |Your task|Observation|Question|Instruction|(> *)?ActionPath|Episode"


@pytest.fixture(params=sorted(FILES))
def real(request, shared_data):
    format, by_eye = FILES[request.param]
    return read_jsonl(shared_data / f"{request.param}.jsonl.gz"), format, by_eye


def test_thoughts_and_actions_that_the_eye_sees_are_found(real):
    """In 97 % of the trajectories that hold one; and nearly always as many of them as the eye counts."""
    trajectories, format, by_eye = real
    spans = [trajectory.segmented(format).spans for trajectory in trajectories]
    for kind, pattern in zip((R, A), by_eye):
        seen = [len(re.findall(pattern, trajectory.text)) for trajectory in trajectories]
        found = [sum(span.kind is kind for span in row) for row in spans]
        assert sum(f > 0 for f, s in zip(found, seen) if s) >= 0.97 * sum(s > 0 for s in seen)
        assert sum(f == s for f, s in zip(found, seen)) >= 0.97 * len(seen)
    both = [all(re.search(pattern, trajectory.text) for pattern in by_eye) for trajectory in trajectories]
    whole = [{span.kind for span in row} == {R, A} for row, there in zip(spans, both) if there]
    assert sum(whole) >= 0.97 * len(whole)


def test_spans_are_lines_the_model_wrote(real):
    """Whole lines, each from the first character of its prefix through its line end, and none of the environment's."""
    trajectories, format, _ = real
    for trajectory in trajectories:
        text = trajectory.text
        for start, end, _ in trajectory.segmented(format).spans:
            assert start == 0 or text[:start].rstrip(" ").endswith("\n")
            assert end == len(text) or text[end - 1] == "\n"
            assert text[start:end].count("\n") <= 1  # none of these files has a thought or action of several lines
            assert not re.match(ENVIRONMENT, text[start:end])


def test_every_token(real, gpt2_tokenizer):
    """A token has a label exactly if it touches a span, and one label at most; in batches, every fourth trajectory."""
    trajectories, format, _ = real
    trajectories = trajectories[::4]
    for first in range(0, len(trajectories), 100):
        texts, spans, _ = zip(*(trajectory.segmented(format) for trajectory in trajectories[first : first + 100]))
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


def test_an_episode_cut_off_in_the_models_words_ends_with_a_labelled_eos(real, gpt2_tokenizer):
    trajectories, format, _ = real
    for trajectory in trajectories[::25]:
        last = trajectory.segmented(format).spans[-1]
        text = trajectory.text[: last.end].rstrip("\n")
        encoded = encode(text, gpt2_tokenizer, format=format)
        assert encoded.span_ids[-2:] == [int(last.kind)] * 2
        assert encode(text + "\n", gpt2_tokenizer, format=format).span_ids[-2:] == [int(last.kind), 0]


def test_gpt2_splits_characters_into_bytes(gpt2_tokenizer):
    """Offsets of such tokens overlap; all of them touch the span."""
    text = "Action: 日本 ʕ•ᴥ•ʔ\nobs"
    encoded = encode(text, gpt2_tokenizer)
    overlapping = [(a, b) for a, b in zip(encoded.offsets, encoded.offsets[1:]) if b[0] < a[1]]
    assert overlapping
    assert [kind for (begin, end), kind in zip(encoded.offsets, encoded.span_ids) if end > begin] == [
        int(A) if begin <= text.index("\n") else 0 for begin, end in encoded.offsets if end > begin
    ]


def test_unknown_formats_in_a_file_are_named(shared_data):
    trajectory = read_jsonl(shared_data / "alfworld/react_fewshot.jsonl.gz", limit=1)[0]
    with pytest.raises(sad.InputError, match=r"format of trajectory 'alfworld/react_fewshot/0000'.*got 'alfworld-react'"):
        trajectory.segmented()
