"""Trains a model of a study with `sad.SADTrainer`, and evaluates it at given steps."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PrinterCallback, TrainerCallback

import sad
from sad.scratch.muon import Muon
from sad.study.config import Training
from sad.study.labels import Example

LANGUAGE_MODEL = {"ce_weight": 1.0, "lambda_observe": 1.0, "curriculum": False}  # cross-entropy on every labelled token
IMITATION = {"ce_weight": 1.0, "curriculum": False}
_LOSSES = ("loss_reason", "loss_act", "loss_observe")


class Trained(NamedTuple):
    """What a training leaves besides the weights.

    Attributes:
        curve: The logs: `step`, and the losses per kind.
        seconds: Seconds of the training, without the evaluations.
    """

    curve: list[dict[str, float]]
    seconds: float


def train(
    model: Any,
    teacher: Any | None,
    examples: Sequence[Example],
    training: Training,
    *,
    settings: Mapping[str, Any],
    learning_rate: float,
    seed: int,
    max_length: int,
    rollouts: Any = None,
    points: Sequence[int] = (),
    on_point: Callable[[int], None] | None = None,
) -> Trained:
    """Trains a model in place.

    Args:
        model: The model.
        teacher: The teacher; None for cross-entropy.
        examples: Labelled examples.
        training: Steps, batches and optimizer.
        settings: Values of `SADConfig` that make the method.
        learning_rate: Peak learning rate.
        seed: Seed of the batch order.
        max_length: Maximum number of tokens per example.
        rollouts: The student's own trajectories, as `sad.SADTrainer` takes them; None for none.
        points: Steps after which `on_point` is called.
        on_point: Receives the step. It may play with the model.
    """
    paused = _Points(points, on_point)
    with tempfile.TemporaryDirectory() as folder:
        trainer = sad.SADTrainer(
            model,
            teacher,
            sad.SADConfig(
                output_dir=folder,
                max_steps=training.steps,
                per_device_train_batch_size=training.batch_size,
                gradient_accumulation_steps=training.accumulation,
                learning_rate=learning_rate,
                bf16=training.bf16,
                max_length=max_length,
                packing="never",  # every method has the same batches
                logging_steps=max(1, training.steps // 50),
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=seed,
                **settings,
            ),
            train_dataset=list(examples),
            callbacks=[paused],
            rollouts=rollouts,
            optimizers=(Muon(model, learning_rate=learning_rate) if training.optimizer == "muon" else None, None),
        )
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start - paused.seconds
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    curve = [{"step": entry["step"], **{name: entry[name] for name in _LOSSES if name in entry}} for entry in logs]
    return Trained(curve, seconds)


class _Points(TrainerCallback):
    """Calls a function after given steps, and measures its time."""

    def __init__(self, points: Sequence[int], call: Callable[[int], None] | None) -> None:
        self._points, self._call, self.seconds = set(points), call, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._call is not None and state.global_step in self._points:
            start = time.perf_counter()
            self._call(state.global_step)
            self.seconds += time.perf_counter() - start
