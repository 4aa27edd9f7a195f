"""The span loss in a training loop of your own, with accelerate."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sad.losses import SpanStats
from sad.teacher_cache.reader import TeacherCache, open_cache
from sad.training.collator import SpanCollator
from sad.training.loss_config import SpanLossConfig
from sad.training.span_loss_trainer import choose_loss
from sad.training.teacher import place_teacher
from sad.training.token_weights import weight_sum


class Step(NamedTuple):
    """What `Distillation.backward` returns.

    Attributes:
        loss: The loss of the step, of all processes; a scalar on the device, without a graph.
        stats: Sums over the supervised tokens of this process.
    """

    loss: Tensor
    stats: SpanStats


class Distillation:
    """Computes the span loss and its gradient for the batches of one optimizer step.

        L = sum of lambda(kind) KL(p_T || p_S) over the supervised tokens of the step, divided by their number

    The number is that of all batches and all processes, so neither accumulation nor the number of processes changes the
    gradient. Create it before `accelerator.prepare(student, ...)`.

    Args:
        accelerator: The accelerator.
        student: The student.
        teacher_model: The teacher. It is put into eval mode and moved to the accelerator's device.
        teacher_cache: A `sad.TeacherCache` or its path, instead of `teacher_model`.
        span_loss: The loss; the default is the paper's.
        data_collator: The collator of the batches; required with a cache.

    Raises:
        InputError: The arguments contradict each other.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        student: nn.Module,
        teacher_model: nn.Module | None = None,
        *,
        teacher_cache: TeacherCache | str | Path | None = None,
        span_loss: SpanLossConfig | None = None,
        data_collator: SpanCollator | None = None,
    ) -> None:
        self._accelerator = accelerator
        self._config = SpanLossConfig() if span_loss is None else span_loss
        cache = None if teacher_cache is None else open_cache(teacher_cache)
        options = {"device": accelerator.device, "rows_known": True}
        self._loss = choose_loss(self._config, student, teacher_model, cache, data_collator, **options)
        if teacher_model is not None:
            place_teacher(teacher_model, accelerator.device)

    def backward(self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> Step:
        """Adds the gradient of one optimizer step to the parameters.

        Args:
            model: The prepared student, in training mode.
            batches: The batches of this process, from a data loader with `sad.SpanCollator`. Every process has as many.
        """
        accelerator = self._accelerator
        divisor = sum(weight_sum(batch, self._config.observe) for batch in batches)
        divisor = accelerator.reduce(divisor, reduction="sum") if accelerator.num_processes > 1 else divisor
        total, stats = torch.zeros((), device=accelerator.device), None
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(model):
                output = self._loss(model, batch, divisor, accelerator)
                loss = output.loss
                if output.contrastive is not None:
                    mean = output.contrastive / (len(batches) * accelerator.num_processes)
                    loss = loss + self._config.contrastive_weight * mean
                # Gradients are averaged over processes, and accelerate divides by its own accumulation steps.
                accelerator.backward(loss * (accelerator.num_processes * accelerator.gradient_accumulation_steps))
            total = total + loss.detach()
            stats = output.stats if stats is None else _added(stats, output.stats)
        return Step(accelerator.reduce(total, reduction="sum") if accelerator.num_processes > 1 else total, stats)


def _added(first: SpanStats, second: SpanStats) -> SpanStats:
    return SpanStats(*(type(a)(*(x + y for x, y in zip(a, b))) for a, b in zip(first, second)))
