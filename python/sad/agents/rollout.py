"""Lets a causal language model play many episodes at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sad.agents.episode import Episode
from sad.agents.episode_runner import Match, Rules
from sad.agents.kv_cache import CachedBatch
from sad.agents.rollout_slot import Seat
from sad.agents.transcript import ChatCodec, Codec
from sad.envs.protocol import Env, Task
from sad.errors import InputError


@torch.inference_mode()
def play(
    model: Any,
    tokenizer: Any,
    env: Env,
    tasks: Sequence[Task],
    *,
    max_steps: int = 50,
    batch_size: int = 64,
    decoding: str = "free",
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    max_turn_tokens: int = 128,
    max_repeats: int = 5,
    max_length: int | None = None,
    prompt: str = "",
    chat: bool = False,
    clean: bool = True,
    on_episode: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """Plays `tasks` with a language model that writes `Reasoning:` and `Action:` lines (format `sad`).

    In each turn the model reads the observation and writes until it ends an `Action:` or `Answer:` line; the
    environment answers, and so on. `batch_size` episodes run side by side over one KV cache, and each goes as it
    would go alone.

    Args:
        model: Causal language model of `transformers`; put into evaluation mode while it plays.
        tokenizer: Its fast tokenizer.
        env: The environment; every episode gets a shallow copy.
        tasks: The tasks to play.
        max_steps: Actions per episode.
        batch_size: Episodes side by side; changes speed and memory, not the result (up to rounding).
        decoding: `"free"`: whatever the model writes is given to the environment. `"admissible"`: after
            `Action:` only tokens of commands that the environment admits. The two are not comparable.
        temperature: 0 for greedy; else tokens are sampled at this temperature.
        seed: Seed of the sampling, or one for each task. A task's samples depend on it and on the task only.
        max_turn_tokens: Tokens the model may write before it must have acted.
        max_repeats: The episode ends when one action has given one answer this often in a row.
        max_length: Tokens per episode, prompt included; the model's context if that is shorter or nothing is given.
        prompt: What the model reads before the first observation, such as `sad.agents.prompts.prompt_text` gives. It is
            no part of the transcript.
        chat: Observations are the user's messages and turns the assistant's, by the tokenizer's chat template. Prompt
            and first observation are one message.
        clean: Mend the form of what is written (`sad.agents.cleaning.clean`), in what is played and what is kept.
        on_episode: Called with every finished episode, for progress displays.

    Returns:
        One episode per task, in the order of `tasks`; `Episode.end` says why it ended.

    Raises:
        InputError: For an unknown decoding, a tokenizer without offsets, without the chat template asked for or
            larger than the model's vocabulary, or numbers out of range.
    """
    rules = Rules(max_steps, max_turn_tokens, max_repeats, decoding, temperature, prompt, clean)
    rules.check()
    length = _length_limit(model, max_length)
    _check(model, tokenizer, batch_size, length)
    codec = (ChatCodec if chat else Codec)(tokenizer, _stops(model))
    seeds = [seed] * len(tasks) if isinstance(seed, int) else seed
    jobs = list(zip(tasks, seeds, strict=True))
    episodes: list[Episode] = []
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(jobs), batch_size):
            seats = [
                Seat(Match(copy.copy(env), task, rules, own_seed), codec, rules, length)
                for task, own_seed in jobs[start : start + batch_size]
            ]
            _play_out(model, seats, on_episode)
            episodes += [seat.episode for seat in seats]
    finally:
        model.train(was_training)
    return episodes


def _play_out(model: Any, seats: list[Seat], on_episode: Callable[[Episode], None] | None) -> None:
    """Plays until the last episode is over.

    In each forward all rows read equally many tokens: the least that any row has to read. That is one while some row
    writes, so a row with an observation reads it token by token beside the others, and all at once when it is alone.
    """
    for seat in seats:
        if seat.over and on_episode is not None:  # no room for a word after the first observation
            on_episode(seat.episode)
    seats = [seat for seat in seats if not seat.over]
    if not seats:
        return
    batch = CachedBatch(model, [seat.take(len(seat.unread)) for seat in seats])
    while True:
        logits = batch.logits.cpu()
        likeliest = logits.argmax(dim=-1).tolist()
        for seat, row, token in zip(seats, logits, likeliest):
            if not seat.over and not seat.unread:
                seat.write(seat.choose(row) if seat.chooses else token)
                if seat.over and on_episode is not None:
                    on_episode(seat.episode)
        going = [row for row, seat in enumerate(seats) if not seat.over]
        if not going:
            return
        if len(going) <= 0.85 * len(seats):  # copying the cache costs more than a few idle rows
            batch.keep(going)
            seats = [seats[row] for row in going]
        width = min(len(seat.unread) for seat in seats if not seat.over)
        batch.feed([[0] * width if seat.over else seat.take(width) for seat in seats])


def _length_limit(model: Any, max_length: int | None) -> int:
    context = getattr(model.config, "max_position_embeddings", None)
    limits = [limit for limit in (context, max_length) if limit is not None]
    if not limits:
        raise InputError("max_length", "a number for a model without a fixed context", "None", "Give one.")
    return min(limits)


def _stops(model: Any) -> list[int]:
    """Tokens that end what the model writes, by its own configuration; instruction-tuned models have several."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def _check(model: Any, tokenizer: Any, batch_size: int, length: int) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "tokenizer", "a fast tokenizer, which knows offsets", type(tokenizer).__name__, "Load it with AutoTokenizer."
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise InputError(
            "tokenizer",
            f"at most the {rows} entries of the model's vocabulary",
            str(len(tokenizer)),
            "Use the tokenizer the model was trained with.",
        )
    for name, number in {"batch_size": batch_size, "max_length": length}.items():
        if number < 1:
            raise InputError(name, "at least 1", str(number), "Raise it.")
