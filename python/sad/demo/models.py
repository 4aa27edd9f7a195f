"""The demo's models, made from nothing: a tokenizer, two decoders, and imitation training for the larger one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from sad.demo.optimizer import Muon

WARMUP = 0.05  # share of the steps
Example = dict[str, list[int]]  # input_ids and span_ids, as `sad.encode_all` makes them


class Shape(NamedTuple):
    """Size of a decoder."""

    layers: int
    width: int
    heads: int


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `vocabulary` entries: any text can be written, and offsets are faithful."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", clean_up_tokenization_spaces=False)


def build_model(shape: Shape, tokenizer: Any, context: int, seed: int) -> LlamaForCausalLM:
    """A LLaMA-like decoder with random weights. Rotary positions learn to copy from the context soonest."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=3 * shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def batches(examples: Sequence[Example], batch_size: int, seed: int) -> Iterator[list[Example]]:
    """Endless batches of examples of similar length, in random order, every example once per pass."""
    draw = random.Random(seed)
    while True:
        order = draw.sample(range(len(examples)), len(examples))
        groups: list[list[int]] = []
        for start in range(0, len(order), 16 * batch_size):
            pool = sorted(order[start : start + 16 * batch_size], key=lambda i: len(examples[i]["input_ids"]))
            groups += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        draw.shuffle(groups)
        yield from ([examples[i] for i in group] for group in groups)


def imitation_loss(model: Any, batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the next token over the supervised tokens alone.

    Padding stands on the right, where a causal model does not look, so no attention mask is needed.

    Returns:
        Mean loss, and the loss of every supervised token (N,).
    """
    length = max(len(example["input_ids"]) for example in batch)
    ids, spans = (
        torch.tensor([example[key] + [0] * (length - len(example[key])) for example in batch])
        for key in ("input_ids", "span_ids")
    )
    supervised = spans[:, 1:] > 0
    hidden = model.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[supervised])  # (N, V), only of the tokens that count
    losses = cross_entropy(logits.float(), ids[:, 1:][supervised], reduction="none")
    return losses.mean(), losses.detach()


def imitate(
    model: Any,
    examples: Sequence[Example],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Trains `model` to write what the examples' author wrote, with Muon, warm-up, cosine decay and clipping at 1.0.

    Args:
        model: Trained in place.
        examples: Encoded trajectories.
        steps: Optimizer steps.
        batch_size: Trajectories per step.
        learning_rate: Its highest value, reached after a twentieth of the steps.
        seed: Of the order of the examples.
        on_step: Called with step and loss after each step.

    Returns:
        The loss of every step.
    """
    optimizer = Muon(model, learning_rate=learning_rate)
    warmup = max(1, round(WARMUP * steps))
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    curve: list[float] = []
    model.train()
    for step, batch in zip(range(1, steps + 1), batches(examples, batch_size, seed)):
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
