"""The span loss of a student and a teacher from their hidden states, inside the call of the wrapped student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.utils import logging

from sad.errors import InputError
from sad.losses import SpanStats, fused_linear_span_kl
from sad.model_parts import Head, ModelParts, forward_as, split_model
from sad.training.contrastive import directions, info_nce
from sadkernels.kinds import SpanKind

logger = logging.get_logger(__name__)


class HiddenLoss:
    """Both models in two parts each.

    Args:
        student: Of the student before it is wrapped.
        teacher: Of the teacher.
    """

    def __init__(self, student: ModelParts, teacher: ModelParts) -> None:
        self._student, self._teacher = student, teacher

    def loss(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        span_ids: Tensor,
        accelerator: Accelerator,
        *,
        contrastive_temperature: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, SpanStats, Tensor | None]:
        """Loss and statistics of one batch, and the contrastive term of the kinds that have a weight.

        Args:
            model: The student, wrapped or not: its hooks share the gradients with the other processes, so everything
                happens inside its call.
            batch: `input_ids` and `attention_mask`.
            span_ids: (B, T).
            accelerator: That wrapped it.
            contrastive_temperature: Of `sad.training.contrastive`; None: no such term.
            **options: Of `sad.fused_linear_span_kl`.
        """
        with torch.no_grad(), accelerator.autocast():
            teacher_hidden, of_teacher = self._teacher.hidden(batch), self._teacher.head()

        def contrastive(hidden: Tensor, of_student: Head) -> Tensor | None:
            if contrastive_temperature is None:
                return None
            columns = min(len(of_student.weight), len(of_teacher.weight))
            weights = {SpanKind.REASON: options["lambda_reason"], SpanKind.ACT: options["lambda_act"]}
            kinds = [kind for kind, weight in weights.items() if weight]
            shared = {"span_ids": span_ids, "columns": columns, "kinds": kinds}
            with torch.no_grad():
                theirs, present = directions(teacher_hidden, of_teacher, **shared)
            ours, _ = directions(hidden, of_student, **shared)
            return info_nce(ours, theirs, present, contrastive_temperature)

        def forward(**batch: Tensor) -> tuple[Tensor, SpanStats, Tensor | None]:
            with accelerator.autocast():
                hidden, of_student = self._student.hidden(batch), self._student.head()
                loss, stats = fused_linear_span_kl(
                    hidden,
                    of_student.weight,
                    teacher_hidden,
                    of_teacher.weight,
                    span_ids,
                    student_bias=of_student.bias,
                    teacher_bias=of_teacher.bias,
                    logit_scale=(of_student.scale, of_teacher.scale),
                    logit_softcap=(of_student.softcap, of_teacher.softcap),
                    **options,
                )
                return loss, stats, contrastive(hidden, of_student)

        with forward_as(accelerator.unwrap_model(model), forward):
            return model(**batch)


def split_models(student: nn.Module, teacher: nn.Module, loss_from: str) -> HiddenLoss | None:
    """Both models in two parts, for the loss from hidden states; None for the loss from logits.

    Raises:
        InputError: `loss_from` is "hidden" and one of them does not come apart.
    """
    student_parts = parts_of("student", student, loss_from)
    teacher_parts = None if student_parts is None else parts_of("teacher", teacher, loss_from)
    return None if teacher_parts is None else HiddenLoss(student_parts, teacher_parts)


def parts_of(name: str, model: nn.Module, loss_from: str) -> ModelParts | None:
    """One model in two parts; None for the loss from logits.

    Raises:
        InputError: `loss_from` is "hidden" and it does not come apart.
    """
    if loss_from == "logits":
        return None
    try:
        return split_model(model)
    except ValueError as error:
        if loss_from == "hidden":
            remedy = "Use loss_from='auto', which takes the logits where that is so."
            got = f"a {name} that is not: {error}"
            raise InputError("loss_from", "models of a body and a head", got, remedy) from error
        logger.warning("The loss is computed from logits, since the %s does not come apart: %s.", name, error)
        return None
