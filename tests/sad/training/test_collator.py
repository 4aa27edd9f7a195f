"""Padding is neither attended to nor supervised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sad import Span
from sad.errors import InputError
from sad.training.collator import SpanCollator
from sad.training.difficulty import read_rows
from sad.trajectories.encode import encode_with_segmentation
from tests.sad.training import tiny

EXAMPLES = [{"input_ids": [5, 6, 7], "span_ids": [0, 1, 2]}, {"input_ids": torch.tensor([8]), "span_ids": [0], "id": "x"}]


def test_pads_to_the_longest():
    batch = SpanCollator(pad_token_id=9)(EXAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["span_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert sorted(batch) == [
        "attention_mask",
        "input_ids",
        "loss_rows",
        "span_ids",
    ]  # other keys are dropped


def test_rounds_up_and_cuts():
    batch = SpanCollator(pad_to_multiple_of=4, max_length=2)(EXAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 0, 0], [8, 0, 0, 0]]
    assert batch["span_ids"].sum() == 1  # the action token was truncated


def both_ways(count: int) -> tuple[list[dict], list[dict]]:
    """Returns examples with labels, and the same with offsets and spans. An EOS that ends a span is its next character."""
    labelled, spanned = [], []
    tokenizer = tiny.tokenizer()
    for number, trajectory in enumerate(tiny.trajectories(count)):
        trajectory.text = trajectory.text.rstrip("\n") if number % 2 else trajectory.text
        encoded, segmentation = encode_with_segmentation(trajectory, tokenizer, format="sad")
        spans, offsets = list(segmentation.spans), list(encoded.offsets)
        if encoded.span_ids[-1]:
            end = len(segmentation.text)
            offsets[-1], spans[-1] = (end, end + 1), spans[-1]._replace(end=end + 1)
        labelled.append({"input_ids": encoded.input_ids, "span_ids": encoded.span_ids})
        spanned.append({"input_ids": encoded.input_ids, "offsets": offsets, "spans": spans[::-1]})
    return labelled, spanned


@pytest.mark.parametrize("options", [{}, {"max_length": 25}, {"pad_to_multiple_of": 16}])
def test_spans_make_the_same_batch_as_labels(options):
    labelled, spanned = both_ways(9)
    collate = SpanCollator(**options)
    wanted = collate(labelled)
    assert wanted["span_ids"].unique().tolist() == [0, 1, 2]
    mixed = [*labelled[:4], *spanned[4:]]
    arrays = [{key: np.array(value) for key, value in example.items()} for example in spanned]
    for examples in (spanned, mixed, arrays, [{**x, "offsets": torch.tensor(x["offsets"])} for x in spanned]):
        batch = collate(examples)
        assert sorted(batch) == sorted(wanted)
        for name, x in wanted.items():
            assert batch[name].dtype == x.dtype and torch.equal(batch[name], x), name
    assert read_rows(spanned, None).digest == read_rows(labelled, None).digest  # the curriculum reads the same labels


def test_no_spans_and_no_tokens():
    batch = SpanCollator()([{"input_ids": [1, 2], "offsets": [(0, 1), (1, 2)], "spans": []}])
    assert batch["span_ids"].tolist() == [[0, 0]]
    both = {"input_ids": [1], "span_ids": [2], "offsets": [(0, 1)], "spans": [Span(0, 1, Span.REASON)]}
    empty = {"input_ids": [], "offsets": [], "spans": [(0, 1, 1)]}
    assert SpanCollator()([both, empty])["span_ids"].tolist() == [[2], [0]]


def test_batches_are_labelled_in_forked_workers():
    labelled, spanned = both_ways(8)
    torch.randn(512, 512) @ torch.randn(512, 512)  # starts threads in the parent
    loaders = (
        torch.utils.data.DataLoader(x, 4, collate_fn=SpanCollator(), num_workers=n) for x, n in ((labelled, 0), (spanned, 2))
    )
    for wanted, batch in zip(*loaders):
        assert torch.equal(wanted["span_ids"], batch["span_ids"])


SPANNED = {"input_ids": [5, 6], "offsets": [(0, 2), (2, 3)], "spans": [(0, 3, 1)]}


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"input_ids": [5, 6, 7]}, "example 1: expected span_ids, or offsets and spans, got no offsets among input_ids"),
        (SPANNED | {"spans": None}, "example 1: expected .* got no spans"),
        (SPANNED | {"offsets": [(0, 2)]}, "example 1: expected 2, one per token, got 1 labels or offsets"),
        (SPANNED | {"offsets": [0, 2]}, r"offsets of example 1: expected \(begin, end\) of every token"),
        (SPANNED | {"spans": [(0, 3, "act")]}, r"spans of example 1: expected \(start, end, kind\) .* Kinds are numbers"),
        (SPANNED | {"spans": [(0, 3, 1), (2, 4, 2)]}, r"do not overlap, got \(2, 4, 2\) after \(0, 3, 1\)"),
        ({"input_ids": [5, 6], "span_ids": [1]}, "example 1: expected 2, one per token, got 1"),
    ],
)
def test_examples_that_cannot_be(example, message):
    with pytest.raises(ValueError, match=message):
        SpanCollator()([SPANNED, example])


def test_the_padding_token_does_not_matter():
    """The padding token does not change the logits of real tokens, so no tokenizer needs a pad_token."""
    for family in ("gpt2", "opt", "llama"):
        model = tiny.model(family).eval()
        logits = []
        for pad in (0, 299):
            batch = SpanCollator(pad)(tiny.examples(8)[4:])
            real = batch["attention_mask"].bool()
            with torch.no_grad():
                logits.append(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[real])
        assert not real.all()  # some tokens are padding
        torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"pad_token_id": -1}, {"pad_to_multiple_of": 0}, {"max_length": 2.5}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        SpanCollator(**wrong)
