"""The imitation training of the demo's teacher."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import get_cosine_schedule_with_warmup

from sad.demo.config import TrainingConfig
from sad.scratch.muon import Muon
from sad.trajectories.spans import is_supervised

WARMUP = 0.05  # share of the steps
Example = dict[str, list[int]]  # input_ids and span_ids, as `sad.encode_all` returns them


def iterate_batches(examples: Sequence[Example], batch_size: int, seed: int) -> Iterator[list[Example]]:
    """Yields batches of examples with similar length forever, in random order. Each epoch has every example once."""
    rng = random.Random(seed)
    while True:
        order = rng.sample(range(len(examples)), len(examples))
        groups: list[list[int]] = []
        for start in range(0, len(order), 16 * batch_size):
            pool = sorted(order[start : start + 16 * batch_size], key=lambda i: len(examples[i]["input_ids"]))
            groups += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        rng.shuffle(groups)
        yield from ([examples[i] for i in group] for group in groups)


def imitation_loss(model: Any, batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Computes the cross-entropy of the next token over the supervised tokens.

    No attention mask is needed, because the padding is on the right and the model is causal.

    Returns:
        The mean loss (scalar) and the loss per supervised token (N,).
    """
    length = max(len(example["input_ids"]) for example in batch)
    ids, spans = (
        torch.tensor([example[key] + [0] * (length - len(example[key])) for example in batch])
        for key in ("input_ids", "span_ids")
    )
    supervised = is_supervised(spans[:, 1:])
    hidden = model.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[supervised])  # (N, V), supervised rows only
    losses = cross_entropy(logits.float(), ids[:, 1:][supervised], reduction="none")
    return losses.mean(), losses.detach()


def imitate(
    model: Any,
    examples: Sequence[Example],
    config: TrainingConfig,
    *,
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Trains `model` on expert trajectories with Muon, linear warm-up, cosine decay and gradient clipping at 1.0.

    Args:
        model: The model. It is trained in place.
        examples: Encoded trajectories.
        config: Steps, batch size and peak learning rate, which is reached after 5 % of the steps.
        seed: Seed of the batch order.
        on_step: Called with the step and its loss after each step.

    Returns:
        The loss of every step.
    """
    optimizer = Muon(model, learning_rate=config.learning_rate)
    warmup = max(1, round(WARMUP * config.steps))
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, config.steps)
    curve: list[float] = []
    model.train()
    for step, batch in zip(range(1, config.steps + 1), iterate_batches(examples, config.batch_size, seed)):
        loss, _ = imitation_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append(loss.item())
        if on_step is not None:
            on_step(step, curve[-1])
    model.eval()
    return curve
