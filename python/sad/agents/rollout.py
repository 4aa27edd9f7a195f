"""Rollouts: a causal language model acts in many episodes at once."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sad.agents.cleaning import ACTION, ANSWER, REASONING, kinds_of_lines
from sad.agents.episode import EndReason, Episode, EpisodeRunner, RolloutConfig
from sad.agents.kv_cache import CachedBatch, attends_to_earlier_tokens
from sad.agents.sampling import sample_token
from sad.agents.transcript import ChatTranscriptTokenizer, TranscriptTokenizer
from sad.envs.protocol import Env, Task
from sad.errors import InputError
from sad.trajectories.kept import KeptTokens, digest
from sad.trajectories.segment import segment
from sad.trajectories.spans import Span, SpanKind, span_ids_from_offsets

_COMPACT_BELOW = 0.85  # share of active rows; copying the KV cache costs more than a few idle rows


@torch.inference_mode()
def rollout(
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
    replayed: Sequence[Sequence[str]] | None = None,
    on_episode: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """Runs one episode per task with a language model that writes `Reasoning:` and `Action:` lines (format `sad`).

    In each turn the model reads the observation and generates tokens until it ends an `Action:` or `Answer:` line. The
    environment answers with the next observation. `batch_size` episodes share one KV cache. They do not affect each
    other, up to rounding.

    Args:
        model: Causal language model of `transformers`. It is in evaluation mode during the rollout.
        tokenizer: Fast tokenizer of the model.
        env: The environment. Every episode uses a shallow copy.
        tasks: The tasks.
        max_steps: Maximum number of actions per episode.
        batch_size: Number of parallel episodes. It changes speed and memory, not the result (up to rounding). Models with
            other layers than full and sliding-window attention play one episode after the other, with a warning.
        decoding: `"free"`: the environment receives the text of the model. `"admissible"`: after `Action:` only tokens
            of admissible commands are allowed. Do not compare results of the two modes.
        temperature: Sampling temperature. 0 is greedy.
        seed: Seed of the sampling, or one seed per task. The samples of a task depend on its seed and the task only.
        max_turn_tokens: Maximum number of tokens per turn.
        max_repeats: The episode ends when the same action gets the same observation this many times in a row.
        max_length: Maximum number of tokens per episode, with the prompt. Default and upper limit: the model's context.
        prompt: Text before the first observation. It is not part of the transcript.
        chat: Use the chat template of the tokenizer. Observations are user messages and turns are assistant messages.
            The prompt and the first observation are one message.
        clean: Normalize the form of the generated lines before the environment and the transcript receive them.
        replayed: Turns per task, such as a teacher's, that are played before the model writes its first one. They do not
            count in `max_steps`, and their tokens have kind 0, like a prompt.
        on_episode: Called with every finished episode, for example to show progress.

    Returns:
        One episode per task, in the order of `tasks`. `Episode.end` is the reason why it ended.

    Raises:
        InputError: `decoding` is unknown, a number is out of range, a replayed turn has no action, or the tokenizer has no
            offsets, has no chat template although `chat` is set, or is larger than the vocabulary of the model.
    """
    config = RolloutConfig(max_steps, max_turn_tokens, max_repeats, decoding, temperature, prompt, clean)
    if batch_size > 1 and not attends_to_earlier_tokens(model.config):
        layers = "layers that are not full or sliding-window attention"
        warnings.warn(f"batch_size is 1 instead of {batch_size}: {type(model).__name__} has {layers}.", stacklevel=2)
        batch_size = 1
    make_slot = slot_maker(model, tokenizer, env, config, batch_size=batch_size, max_length=max_length, chat=chat)
    seeds = [seed] * len(tasks) if isinstance(seed, int) else seed
    turns = [()] * len(tasks) if replayed is None else replayed
    jobs = list(zip(tasks, seeds, turns, strict=True))
    episodes: list[Episode] = []
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(jobs), batch_size):
            slots = [make_slot(*job) for job in jobs[start : start + batch_size]]
            _run_batch(model, slots, on_episode)
            episodes += [slot.close() for slot in slots]
    finally:
        model.train(was_training)
    return episodes


def slot_maker(
    model: Any, tokenizer: Any, env: Env, config: RolloutConfig, *, batch_size: int, max_length: int | None, chat: bool
) -> Callable[[Task, int, Sequence[str]], RolloutSlot]:
    """Returns a function that starts an episode of a task with a seed, after turns that are replayed.

    Arguments and errors as in `rollout`.
    """
    length = _resolve_max_length(model, max_length)
    _validate(model, tokenizer, batch_size, length)
    transcript = (ChatTranscriptTokenizer if chat else TranscriptTokenizer)(tokenizer, stop_ids(model))

    def make(task: Task, seed: int, replayed: Sequence[str] = ()) -> RolloutSlot:
        own = replace(config, max_steps=config.max_steps + len(replayed))
        slot = RolloutSlot(EpisodeRunner(copy.copy(env), task, own, seed), transcript, own, length)
        slot.replay(replayed)
        return slot

    return make


class RolloutSlot:
    """One row of the batch: an episode whose turns a model generates token by token.

    The model first reads the tokens in `unread`. When `unread` is empty, `append` adds the next generated token. A token
    that ends an `Action:` line steps the environment, and the tokens of the observation become unread.

    Args:
        runner: The episode.
        transcript: Tokenizer of the transcript.
        config: Limits and sampling options.
        max_length: Maximum number of tokens per episode.

    Attributes:
        episode: The record of the episode.
        unread: Tokens that the model has not read yet.
    """

    def __init__(
        self, runner: EpisodeRunner, transcript: TranscriptTokenizer, config: RolloutConfig, max_length: int
    ) -> None:
        self.episode = runner.episode
        self.unread: list[int] = []
        self._runner, self._transcript, self._config, self._max_length = runner, transcript, config, max_length
        self._turn: list[int] = []  # tokens generated since the last observation
        self._candidates: list[list[int]] | None = None  # remaining tokens of the admissible commands, during a command
        self._generator = torch.Generator().manual_seed(self.episode.sampling_seed)
        self._kinds = ""  # a digit per token of the episode, without those of the turn that goes on
        self._stopped: int | None = None  # the stop token that the model generated last
        opening, self._prompt = transcript.encode_prompted(runner.prompt, self.episode.text)
        self._append_observation(opening, self.episode.text)

    @property
    def done(self) -> bool:
        """Whether the episode has ended."""
        return self._runner.done

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is always the argmax over the vocabulary, so that `sample` is not needed."""
        return self._config.temperature == 0 and self._config.decoding == "free"

    def read(self, count: int) -> list[int]:
        """Removes and returns the first `count` unread tokens."""
        tokens, self.unread = self.unread[:count], self.unread[count:]
        return tokens

    def sample(self, logits: Tensor) -> int:
        """Returns the next token: the argmax or a sample over the allowed tokens.

        Args:
            logits: (V,) of this row, on the CPU.
        """
        return sample_token(logits, self._config.temperature, self._generator, self._allowed_tokens())

    def replay(self, turns: Sequence[str]) -> None:
        """Plays given turns. Afterwards their tokens and those of the observations count as a prompt.

        Raises:
            InputError: A turn has no action.
        """
        episode = self.episode
        for turn in turns:
            if self.done:
                break
            line = "" if self._transcript.is_chat else episode.text.splitlines(keepends=True)[-1]
            self._append_generated(self._transcript.encode_after(line, turn))
            if not self._step(turn):
                raise InputError("replayed", "turns with an `Action:` or `Answer:` line", repr(turn), "Leave it out.")
        if turns:
            self._kinds, self._turn = "0" * len(episode.token_ids), []
            episode.generated_mask = [False] * len(episode.token_ids)
            episode.replayed, episode.invalid_actions = len(episode.actions), 0

    def end(self, reason: EndReason) -> None:
        """Ends the episode, unless it has ended."""
        self._runner.end(reason, self._turn_text())

    def append(self, token: int) -> None:
        """Appends a generated token. If it completes an `Action:` line, the environment steps."""
        if token in self._transcript.stop_ids:
            self._stopped = token
            self._end_turn()
            return
        self._append_generated([token])
        if self._transcript.contains_newline(token):
            self._step(self._turn_text())
        if not self.done and len(self._turn) >= self._config.max_turn_tokens:
            self._runner.end(EndReason.ENDLESS, self._turn_text())
        elif not self.done and len(self.episode.token_ids) >= self._max_length:
            self._runner.end(EndReason.CONTEXT, self._turn_text())

    def _append_generated(self, tokens: list[int]) -> None:
        self._turn += tokens
        self.unread += tokens
        self.episode.token_ids += tokens
        self.episode.generated_mask += [True] * len(tokens)
        if self._candidates is not None:
            self._candidates = [rest[1:] for rest in self._candidates if rest[:1] == tokens and len(rest) > 1] or None

    def _append_observation(self, tokens: list[int], observation: str) -> None:
        self._kinds += self._kinds_of_turn()
        own = int(tokens[:1] == [self._stopped])  # a template goes on with the mark that the model stopped with
        self.episode.token_ids += tokens
        self.episode.generated_mask += [True] * own + [False] * (len(tokens) - own)
        if own or True in self.episode.generated_mask:
            observed = self._transcript.observed(tokens, observation)[own:]
            self._kinds += str(int(SpanKind.ACT)) * own + "".join(str(int(SpanKind.OBSERVE) * one) for one in observed)
        else:
            self._kinds += "0" * len(tokens)
        self._stopped = None
        self.unread += tokens
        self._turn, self._candidates = [], None
        if len(self.episode.token_ids) >= self._max_length:
            self._runner.end(EndReason.CONTEXT)

    def _end_turn(self) -> None:
        """Handles a stop token. It also ends the line. The episode goes on only if this line is a command."""
        text = self._turn_text()
        if text and not text.endswith("\n"):
            self._append_generated(self._transcript.newline_ids)
            text += "\n"
        if not self._step(text):
            self._runner.end(EndReason.NO_ACTION, text)

    def _step(self, text: str) -> bool:
        """Steps the environment if the turn contains a command, and returns whether it does."""
        observation = self._runner.step(text)
        if observation is None:
            return False
        self._append_observation(self._transcript.encode_observation(text, observation), observation)
        return True

    def _allowed_tokens(self) -> list[int] | None:
        """Returns the ids of the allowed next tokens, or None if every token is allowed."""
        if self._config.decoding != "admissible":
            return None
        if self._candidates is None and self._runner.expects_command(text := self._turn_text()):
            line = text.rpartition("\n")[2]
            blank = "" if line.endswith(" ") else " "
            commands = self._runner.admissible
            self._candidates = [self._transcript.encode_after(line, f"{blank}{command}\n") for command in commands]
        return sorted({rest[0] for rest in self._candidates}) if self._candidates else None

    def close(self) -> Episode:
        """Returns the episode, with its tokens and their kinds, after it has ended."""
        episode = self.episode
        if episode.kept_tokens is None:
            self._kinds += self._kinds_of_turn()
            digests = digest(episode.text), digest(self._transcript.decode(episode.token_ids))
            ids, chat = list(episode.token_ids), self._transcript.is_chat
            episode.kept_tokens = KeptTokens(ids, self._kinds, self._prompt, chat, *digests)
        return episode

    def _kinds_of_turn(self) -> str:
        """Returns a digit per token of the turn: what the model wrote in lines of reasoning and of actions."""
        text, offsets = self._transcript.offsets(self._turn)
        if self._config.clean:
            kinds = {REASONING: SpanKind.REASON, ACTION: SpanKind.ACT, ANSWER: SpanKind.ACT}
            parts = kinds_of_lines(text)
            spans = [Span(start, end, kinds[prefix]) for start, end, prefix in parts if prefix is not None]
        else:
            spans = segment(text, "sad").spans
        return "".join(map(str, span_ids_from_offsets(offsets, spans).tolist())) if offsets else ""

    def _turn_text(self) -> str:
        return self._transcript.decode(self._turn)


def _run_batch(model: Any, slots: list[RolloutSlot], on_episode: Callable[[Episode], None] | None) -> None:
    """Runs the episodes of a batch until all have ended.

    In each forward pass all rows read the same number of tokens: the minimum over the unread tokens of the active rows.
    This is 1 while any row generates. An observation is then read token by token, and in one pass if the row is alone.
    """
    for slot in slots:
        if slot.done and on_episode is not None:  # the first observation filled the context
            on_episode(slot.close())
    slots = [slot for slot in slots if not slot.done]
    if not slots:
        return
    batch = CachedBatch(model, [slot.read(len(slot.unread)) for slot in slots])
    while True:
        logits = batch.logits.cpu()
        greedy_tokens = logits.argmax(dim=-1).tolist()
        for slot, row_logits, greedy_token in zip(slots, logits, greedy_tokens):
            if not slot.done and not slot.unread:
                slot.append(greedy_token if slot.is_greedy else slot.sample(row_logits))
                if slot.done and on_episode is not None:
                    on_episode(slot.close())
        active = [row for row, slot in enumerate(slots) if not slot.done]
        if not active:
            return
        if len(active) <= _COMPACT_BELOW * len(slots):
            batch.keep(active)
            slots = [slots[row] for row in active]
        width = min(len(slot.unread) for slot in slots if not slot.done)
        batch.feed([[0] * width if slot.done else slot.read(width) for slot in slots])


def _resolve_max_length(model: Any, max_length: int | None) -> int:
    context = getattr(model.config, "max_position_embeddings", None)
    limits = [limit for limit in (context, max_length) if limit is not None]
    if not limits:
        raise InputError("max_length", "a number for a model without a fixed context", "None", "Set max_length.")
    return min(limits)


def stop_ids(model: Any) -> list[int]:
    """Returns the end-of-sequence tokens in the generation config. Instruction-tuned models have several."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _validate(model: Any, tokenizer: Any, batch_size: int, max_length: int) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            "tokenizer", "a fast tokenizer with offsets", type(tokenizer).__name__, "Load it with AutoTokenizer."
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise InputError(
            "tokenizer",
            f"at most the {rows} entries of the model's vocabulary",
            str(len(tokenizer)),
            "Use the tokenizer of the model.",
        )
    for name, number in {"batch_size": batch_size, "max_length": max_length}.items():
        if number < 1:
            raise InputError(name, "at least 1", str(number), "Use a larger number.")
