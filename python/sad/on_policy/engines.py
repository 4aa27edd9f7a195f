"""What runs the student: its model in this process, or a server with its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from sad.agents.episode import Episode, RolloutConfig
from sad.agents.rollout import rollout
from sad.envs.protocol import Env, Task
from sad.errors import InputError
from sad.on_policy.turns import Turn, write_turns

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import Trainer


@dataclass(frozen=True)
class Play:
    """How the student plays.

    Args:
        tokenizer: Its fast tokenizer.
        config: Limits and sampling options of an episode.
        batch_size: Number of parallel episodes.
        max_length: Maximum number of tokens per episode.
        chat: Whether the student reads a conversation in its chat template.
    """

    tokenizer: Any
    config: RolloutConfig
    batch_size: int
    max_length: int
    chat: bool = False


class Engine(Protocol):
    """Runs the student."""

    def check(self, trainer: Trainer) -> None:
        """Checks that the engine can run the student of a trainer.

        Raises:
            InputError: It cannot.
        """
        ...

    def sync(self, student: nn.Module, step: int, accelerator: Accelerator) -> None:
        """Gives the engine the weights of the student after `step` optimizer steps. Every process calls it."""
        ...

    def episodes(
        self,
        student: nn.Module,
        env: Env,
        tasks: Sequence[Task],
        seeds: Sequence[int],
        replayed: Sequence[Sequence[str]],
        play: Play,
    ) -> list[Episode]:
        """Returns one finished episode with token ids per task, after turns that are replayed."""
        ...

    def turns(
        self, student: nn.Module, turns: Sequence[Turn], tokenizer: Any, *, temperature: float, batch_size: int
    ) -> list[list[int]]:
        """Returns the tokens that the student writes for each turn, with the stop token if it wrote one."""
        ...


def check_whole_student(trainer: Trainer) -> None:
    """Checks that each process has all weights of the student, to play with it or to give it to a server.

    Raises:
        InputError: The weights are sharded over processes.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        expected, got = "a student that each process has whole", "one with FSDP or DeepSpeed"
        raise InputError("rollouts", expected, got, "Use DDP for a training on the student's own trajectories.")


class LocalEngine:
    """The student's model in this process, with a KV cache."""

    def check(self, trainer: Trainer) -> None:
        """See `Engine`.

        Raises:
            InputError: The weights are sharded over processes, so that none of them can play alone.
        """
        check_whole_student(trainer)

    def sync(self, student: nn.Module, step: int, accelerator: Accelerator) -> None:
        """See `Engine`. Nothing to do: the model is the one that is trained."""

    def episodes(
        self,
        student: nn.Module,
        env: Env,
        tasks: Sequence[Task],
        seeds: Sequence[int],
        replayed: Sequence[Sequence[str]],
        play: Play,
    ) -> list[Episode]:
        """See `Engine`."""
        config = play.config
        return rollout(
            student,
            play.tokenizer,
            env,
            tasks,
            max_steps=config.max_steps,
            batch_size=play.batch_size,
            temperature=config.temperature,
            seed=seeds,
            max_turn_tokens=config.max_turn_tokens,
            max_repeats=config.max_repeats,
            max_length=play.max_length,
            prompt=config.prompt,
            chat=play.chat,
            clean=config.clean,
            replayed=replayed,
        )

    def turns(
        self, student: nn.Module, turns: Sequence[Turn], tokenizer: Any, *, temperature: float, batch_size: int
    ) -> list[list[int]]:
        """See `Engine`."""
        return write_turns(student, tokenizer, turns, temperature=temperature, batch_size=batch_size)
