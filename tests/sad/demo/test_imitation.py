"""The imitation training of the demo: supervised tokens, order of the batches, and the optimizer."""

from __future__ import annotations

import itertools

import pytest
import torch

import sad
from sad.demo.config import TrainingConfig
from sad.demo.imitation import imitate, imitation_loss, iterate_batches
from sad.scratch.models import build_decoder, train_tokenizer
from sad.scratch.muon import Muon
from sad.scratch.shape import DecoderShape

LINE = "Reasoning: I need mug {k}.\nAction: take mug {k}\n"
TEXTS = [f"You see mug {k}.\n" + LINE.format(k=k) * (1 + k % 3) for k in range(24)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


@pytest.fixture(scope="module")
def examples(tokenizer) -> list[dict]:
    return sad.encode_all([sad.Trajectory(text=text) for text in TEXTS], tokenizer).examples


def test_loss_counts_supervised_tokens_only_and_padding_does_not_matter(tokenizer, examples) -> None:
    model = build_decoder(DecoderShape(2, 32, 2), tokenizer, 256, seed=0).double()
    batch = [examples[0], examples[2]]
    assert len(batch[0]["input_ids"]) != len(batch[1]["input_ids"])
    loss, losses = imitation_loss(model, batch)
    expected = []
    for example in batch:
        ids, spans = torch.tensor(example["input_ids"]), example["span_ids"]
        log_probs = model(ids[None]).logits[0].log_softmax(-1)
        expected += [-log_probs[t - 1, ids[t]] for t in range(1, len(ids)) if spans[t]]
    torch.testing.assert_close(losses.double(), torch.stack(expected).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss.double(), torch.stack(expected).mean(), rtol=1e-5, atol=1e-6)


def test_every_epoch_has_every_example_once(examples) -> None:
    stream = iterate_batches(examples, 5, seed=1)
    first = [example["input_ids"] for batch in itertools.islice(stream, 5) for example in batch]
    assert sorted(first) == sorted(example["input_ids"] for example in examples)
    second = [example["input_ids"] for batch in itertools.islice(stream, 5) for example in batch]
    assert sorted(second) == sorted(first) and second != first


def test_muon_updates_all_parameters_and_follows_the_learning_rate(tokenizer, examples) -> None:
    model = build_decoder(DecoderShape(1, 32, 2), tokenizer, 256, seed=0)
    optimizer = Muon(model, learning_rate=0.0, weight_decay=0.0)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    imitation_loss(model, examples[:4])[0].backward()
    optimizer.step()
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    for name, parameter in model.named_parameters():
        moved = (parameter - before[name]).detach()
        assert moved.abs().max() > 0, name
        if moved.dim() == 2 and "embed" not in name:  # an orthogonal update moves all directions by about the same amount
            values = torch.linalg.svdvals(moved)
            assert values[0] / values[4] < 1.5, name  # the gradient of four texts has low rank


def test_a_small_model_learns_to_copy_the_number(tokenizer, examples) -> None:
    """The loss cannot get this low unless the model copies the number from the observation."""
    model = build_decoder(DecoderShape(2, 32, 2), tokenizer, 256, seed=0)
    curve = imitate(model, examples, TrainingConfig(steps=200, batch_size=8, learning_rate=1e-2), seed=0)
    assert len(curve) == 200 and sum(curve[-10:]) / 10 < 0.15 and curve[0] > 3
    assert not model.training
