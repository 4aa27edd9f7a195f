"""Padding that is neither attended to nor supervised."""

from __future__ import annotations

import pytest
import torch

from sad.errors import InputError
from sad.training.collator import SpanCollator
from tests.sad.training import tiny

EXAMPLES = [{"input_ids": [5, 6, 7], "span_ids": [0, 1, 2]}, {"input_ids": torch.tensor([8]), "span_ids": [0], "id": "x"}]


def test_pads_to_the_longest():
    batch = SpanCollator(pad_token_id=9)(EXAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["span_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert sorted(batch) == ["attention_mask", "input_ids", "span_ids"]  # what else an example holds stays behind


def test_rounds_up_and_cuts():
    batch = SpanCollator(pad_to_multiple_of=4, max_length=2)(EXAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 0, 0], [8, 0, 0, 0]]
    assert batch["span_ids"].sum() == 1  # the action token was cut


def test_the_padding_token_does_not_matter():
    """No tokenizer needs a pad_token: logits of real tokens are the same whatever stands in the padding."""
    for family in ("gpt2", "opt", "llama"):
        model = tiny.model(family).eval()
        logits = []
        for pad in (0, 299):
            batch = SpanCollator(pad)(tiny.examples(8)[4:])
            real = batch["attention_mask"].bool()
            with torch.no_grad():
                logits.append(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[real])
        assert not real.all()  # some of it is padding
        torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"pad_token_id": -1}, {"pad_to_multiple_of": 0}, {"max_length": 2.5}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        SpanCollator(**wrong)
