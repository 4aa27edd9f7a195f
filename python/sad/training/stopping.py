"""Stops a training at a signal: the first one saves a checkpoint after the running step, the second one ends it at once."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from transformers import TrainerCallback

from sad import interrupts
from sad.training.finite import FiniteGuard


class SignalStop(TrainerCallback):
    """Lets Ctrl-C or SIGTERM end the training loop with a checkpoint.

    With several processes all of them stop after the same step: the guard adds the request to the flag that it reduces over
    the processes anyway.

    Args:
        guard: The guard of the trainer.
        main: Whether this process prints.

    Attributes:
        number: The first signal of this process; None if there was none.
    """

    def __init__(self, guard: FiniteGuard, main: bool) -> None:
        self._guard, self._main = guard, main
        self._stack = contextlib.ExitStack()
        self.number: int | None = None
        self._stopped = False

    def request(self, number: int) -> None:
        """Asks for a stop after the running step. Any thread may call it."""
        if self.number is None and self._main:
            again = "Repeat it to stop at once."
            print(f"\nsad: stopping: a checkpoint is saved after this step. {again}", file=sys.stderr, flush=True)
        self.number = self.number or number
        self._guard.stop_requested = True

    def on_train_begin(self, args, state, control, **kwargs: Any) -> None:
        self._stack.enter_context(interrupts.gently(self.request))

    def on_step_end(self, args, state, control, **kwargs: Any) -> None:
        if self._guard.stop_agreed(args.world_size):
            self._stopped = True
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs: Any) -> None:
        self._stack.close()

    def raise_if_stopped(self) -> None:
        """Raises `interrupts.Interrupted` if a signal has ended the training.

        Raises:
            Interrupted: It has.
        """
        self._stack.close()
        if self._stopped:
            raise interrupts.Interrupted(self.number or interrupts.DEFAULT_SIGNAL)
