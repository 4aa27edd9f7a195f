"""What a trainer needs of a source of the student's own trajectories. `sad.on_policy` has the sources."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

from sad.errors import InputError
from sad.training.fields import OnPolicyFields

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer

    from sad.training.config import SADConfig


class OnPolicySource(Protocol):
    """The student's own trajectories as batches of a training."""

    def check(self, args: SADConfig) -> None:
        """Checks that the source fits the configuration, before the trainer touches the output folder.

        Raises:
            InputError: It does not.
        """
        ...

    def attach(self, trainer: Trainer) -> None:
        """Connects the source with its trainer, once, when the trainer is complete.

        Raises:
            InputError: The source cannot work with this trainer.
        """
        ...

    def mixed(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the batches of an optimizer step of this process, some of them replaced by the student's own.

        Every process calls it at the start of every step. The student may play meanwhile.
        """
        ...

    def logs(self) -> dict[str, float]:
        """Returns what the log shows of the rollouts since the last log. Every process calls it."""
        ...


def check_on_policy(
    args: SADConfig, rollouts: OnPolicySource | None, teacher: nn.Module | str | None, train_dataset: Any
) -> None:
    """Checks that a training can score and mix the student's own trajectories.

    Raises:
        InputError: There is no live teacher, no data set with a length, or several GPUs share one process; or fields of the
            rollouts are set although there are none.
    """
    if rollouts is None:
        changed = [item.name for item in dataclasses.fields(OnPolicyFields) if getattr(args, item.name) != item.default]
        if changed:
            remedy = "Pass --on-policy or --prefix-replay, or rollouts= in Python; or leave it out."
            raise InputError(changed[0], "its default without rollouts", repr(getattr(args, changed[0])), remedy)
        return
    rollouts.check(args)
    if teacher is None:
        remedy = "Pass teacher_model: it must read what the student has written, which no cache holds."
        raise InputError("rollouts", "a live teacher", "none", remedy)
    if train_dataset is None or not hasattr(train_dataset, "__len__"):
        got = "none" if train_dataset is None else "a stream"
        remedy = "Pass the teacher's trajectories as a list of examples; with on_policy_start=1 none of them is trained."
        raise InputError("train_dataset", "a data set with a length beside rollouts", got, remedy)
    if args.n_gpu > 1:
        got = f"{args.n_gpu} GPUs in one process"
        raise InputError("rollouts", "one GPU per process", got, "Start with torchrun or accelerate launch.")
