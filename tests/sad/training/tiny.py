"""Models, a tokenizer and trajectories small enough to train in a test."""

from __future__ import annotations

import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from sad.trajectories.encode import encode_all
from sad.trajectories.trajectory import Trajectory

PLACES = ("desk 1", "shelf 2", "cabinet 3", "drawer 4")
THINGS = ("mug", "book", "pen", "lamp")


def trajectories(count: int, seed: int = 0) -> list[Trajectory]:
    """Returns episodes of one to four turns in the format `sad`. Every third starts with reasoning, so its first token is
    supervised although a causal model does not predict it."""
    rng = random.Random(seed)
    result = []
    for number in range(count):
        thing, text = rng.choice(THINGS), "" if number % 3 == 0 else "You are in a room.\n"
        for _ in range(rng.randint(1, 4)):
            place = rng.choice(PLACES)
            text += (
                f"Reasoning: I look for the {thing} at {place}.\nAction: go to {place}\nYou see a {rng.choice(THINGS)}.\n"
            )
        result.append(Trajectory(id=str(number), text=text))
    return result


def tokenizer(vocabulary: int = 300) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer with an EOS token and no padding token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([trajectory.text for trajectory in trajectories(50)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")


def examples(
    count: int = 24, seed: int = 0, max_length: int | None = 96, observe: bool = False
) -> list[dict[str, list[int]]]:
    """Returns encoded trajectories."""
    texts = trajectories(count, seed)
    return encode_all(texts, tokenizer(), format="sad", max_length=max_length, observe=observe).examples


def model(family: str = "gpt2", vocabulary: int = 300, seed: int = 0, dropout: float = 0.0, sharpness: float = 1.0):
    """Returns a random causal language model, 2 layers of width 32. `sharpness` scales the head to get peaked outputs."""
    torch.manual_seed(seed)
    shared = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}
    if family == "gpt2":
        drop = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        made = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=128, **drop, **shared))
    elif family == "opt":
        sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        made = OPTForCausalLM(
            OPTConfig(
                max_position_embeddings=128, word_embed_proj_dim=32, dropout=dropout, pad_token_id=1, **sizes, **shared
            )
        )
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        made = LlamaForCausalLM(LlamaConfig(max_position_embeddings=128, **sizes, **shared))
    with torch.no_grad():
        made.lm_head.weight.mul_(sharpness)
    return made


CONFIG = {
    "use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", "max_length": 96, "max_steps": 4,
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "logging_steps": 1, "learning_rate": 1e-2,
}  # fmt: skip
