"""The loss of one batch, from the logits of both models or from their hidden states.

`SADTrainer` chooses one of them, or one of `sad.training.cached_loss`, when it is built, and calls it as a `SpanLoss`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers.utils import logging

from sad.errors import InputError
from sad.losses import (
    fused_linear_span_kl,
    fused_span_ce,
    fused_span_kl,
)
from sad.model_parts import Head, ModelParts
from sad.training.collator import model_inputs
from sad.training.contrastive import directions, info_nce
from sad.training.loss_config import SpanLossConfig
from sad.training.loss_parts import (
    LossOutput,
    ce_options,
    divergence_from_uniform,
    divergence_options,
    head_options,
    linear_span_ce,
    mixed,
    parts_of,
    per_token,
    run_loss,
    step_weights,
    warn_of_rounded_logits,
)
from sad.training.teacher import teacher_logits, vocabulary_group
from sad.training.token_weights import log_columns
from sad.trajectories.spans import supervised_kinds

logger = logging.get_logger(__name__)


class LogitsLoss:
    """The loss from the logits of both models.

    Args:
        args: The configuration.
        teacher: The teacher; None in a subclass that has its logits from elsewhere.
    """

    def __init__(self, args: SpanLossConfig, teacher: nn.Module | None) -> None:
        self.teacher = teacher
        self._args, self._step_weights = args, step_weights(args)

    def __call__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        normalizer: Tensor,
        accelerator: Accelerator,
        *,
        needs_logits: bool = False,
    ) -> LossOutput:
        """See `SpanLoss`. Adds `fused_span_ce` on the same logits if `ce_weight` is set."""
        args, batch = self._args, model_inputs(inputs)
        teacher = self._teacher_logits(inputs, accelerator)
        outputs = model(**batch)
        warn_of_rounded_logits(model, outputs.logits, accelerator)
        group = self._vocabulary_group(model, outputs.logits, teacher, accelerator)
        for name, off in (("ce_weight", 0.0), ("token_weighting", "none")):
            if getattr(args, name) != off and group is not None:
                remedy = f"Set {name} to {off}, or load the models with a head that gathers its logits."
                got = str(getattr(args, name))
                raise InputError(name, f"{off} with logits that are sharded over processes", got, remedy)
        span_ids, columns = inputs["span_ids"], min(outputs.logits.shape[-1], teacher.shape[-1])
        weights = self._step_weights.of(
            inputs,
            model.training,
            certainty=lambda options: (
                fused_span_kl(teacher.new_zeros(columns).expand(*span_ids.shape, -1), teacher, span_ids, **options)
                / log_columns(columns)
            ),
            divergence=lambda: fused_span_kl(
                outputs.logits.detach(), teacher, span_ids, **per_token(divergence_options(args, normalizer, None))
            ),
        )
        loss, stats = fused_span_kl(
            outputs.logits,
            teacher,
            span_ids,
            inplace_backward=args.inplace_backward and not needs_logits and not args.ce_weight,
            process_group=group,
            **divergence_options(args, normalizer, weights),
        )
        if args.ce_weight:
            options = ce_options(args, normalizer, weights, columns)
            ce = fused_span_ce(outputs.logits, inputs["input_ids"], span_ids, **options)
            loss, stats = mixed(args.ce_weight, (loss, stats), ce)
        return LossOutput(loss, stats, outputs, token_weights=weights)

    def _teacher_logits(self, inputs: Mapping[str, Tensor], accelerator: Accelerator) -> Tensor:
        """Returns the teacher's logits (B, T, V) for a batch."""
        return teacher_logits(self.teacher, model_inputs(inputs), accelerator)

    def _vocabulary_group(
        self, model: nn.Module, logits: Tensor, teacher: Tensor, accelerator: Accelerator
    ) -> ProcessGroup | None:
        """Returns the processes that share the vocabulary, or None if the logits are whole."""
        student_group = vocabulary_group(accelerator.unwrap_model(model), logits, accelerator)
        teacher_group = None if self.teacher is None else vocabulary_group(self.teacher, teacher, accelerator)
        if (student_group is None) != (teacher_group is None) or (student_group and logits.shape[-1] != teacher.shape[-1]):
            got = f"{logits.shape[-1]} columns of the student beside {teacher.shape[-1]} of the teacher"
            remedy = "Load both models with the same tensor-parallel plan for the head."
            raise InputError("teacher_model", "logits that are sharded like the student's", got, remedy)
        return student_group


class HiddenLoss:
    """The loss from hidden states: only supervised rows are projected, and no logits of the batch exist.

    Args:
        args: The configuration.
        student: The parts of the student, from before it is wrapped.
        teacher: The parts of the teacher; None in a subclass that has its hidden states from elsewhere.
        from_logits: The loss for calls that need logits.
        rows_known: Whether `loss_rows` of a training batch are right. Accelerate may split the batches of an iterable
            dataset without knowing about row numbers. If they are not, finding the rows synchronizes the device.
    """

    def __init__(
        self,
        args: SpanLossConfig,
        student: ModelParts,
        teacher: ModelParts | None,
        from_logits: LogitsLoss,
        rows_known: bool,
    ) -> None:
        self._args, self._student, self._teacher = args, student, teacher
        self._from_logits, self._rows_known, self._step_weights = from_logits, rows_known, step_weights(args)

    def __call__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        normalizer: Tensor,
        accelerator: Accelerator,
        *,
        needs_logits: bool = False,
    ) -> LossOutput:
        """See `SpanLoss`. The loss runs inside the call of the wrapped model, so that the wrapper's hooks fire.

        If `ce_weight` is set, the cross-entropy projects the student's supervised rows a second time.
        """
        if needs_logits or isinstance(model, nn.DataParallel):
            return self._from_logits(model, inputs, normalizer, accelerator, needs_logits=needs_logits)
        args, span_ids = self._args, inputs["span_ids"]
        rows = inputs.get("loss_rows") if model.training and self._rows_known else None
        with torch.no_grad(), accelerator.autocast():
            teacher_hidden, teacher_head = self._teacher_output(inputs)

        def compute(hidden: Tensor, head: Head) -> LossOutput:
            linear = {"rows": rows, "chunk_bytes": args.loss_chunk_bytes}
            columns = min(len(head.weight), len(teacher_head.weight))

            def divergence(hidden: Tensor, options: dict[str, Any]) -> Any:
                return fused_linear_span_kl(
                    hidden,
                    head.weight,
                    teacher_hidden,
                    teacher_head.weight,
                    span_ids,
                    **head_options(head, teacher_head),
                    **linear,
                    **options,
                )

            weights = self._step_weights.of(
                inputs,
                model.training,
                certainty=lambda options: self._certainty(
                    inputs, teacher_hidden, teacher_head, columns, **linear, **options
                ),
                divergence=lambda: divergence(hidden.detach(), per_token(divergence_options(args, normalizer, None))),
            )
            result = divergence(hidden, divergence_options(args, normalizer, weights))
            if args.ce_weight:
                options = ce_options(args, normalizer, weights, columns)
                ce = linear_span_ce(hidden, head, inputs, **linear, **options)
                result = mixed(args.ce_weight, result, ce)
            contrastive = None
            if args.contrastive_weight and model.training:
                contrastive = self._contrastive(span_ids, columns, (hidden, head), (teacher_hidden, teacher_head))
            return LossOutput(*result, {}, contrastive, weights)

        return run_loss(self._student, model, inputs, accelerator, compute)

    def _teacher_output(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Head]:
        """Returns the teacher's hidden states (B, T, H) for a batch and its whole head. Only supervised rows are read."""
        return self._teacher.run_frozen(self._from_logits.teacher, model_inputs(inputs))

    def _certainty(self, inputs: Mapping[str, Tensor], hidden: Tensor, head: Head, columns: int, **options: Any) -> Tensor:
        """Returns 1 - H / log V of the teacher for each row (B, T), from its hidden states and its head."""
        return divergence_from_uniform(hidden, head, inputs["span_ids"], columns, **options) / log_columns(columns)

    def _contrastive(
        self, span_ids: Tensor, columns: int, student: tuple[Tensor, Head], teacher: tuple[Tensor, Head]
    ) -> Tensor:
        """Returns the contrastive term of the kinds whose lambda is above 0."""
        args = self._args
        lambdas = (args.lambda_reason, args.lambda_act, args.lambda_observe)
        kinds = [kind for kind, weight in zip(supervised_kinds(observe=True), lambdas) if weight]
        with torch.no_grad():
            theirs, present = directions(*teacher, span_ids, columns, kinds)
        ours, _ = directions(*student, span_ids, columns, kinds)
        return info_nce(ours, theirs, present, args.contrastive_temperature)


def live_loss(
    args: SpanLossConfig, student: nn.Module, teacher: nn.Module, *, rows_known: bool, gpus: int = 1
) -> LogitsLoss | HiddenLoss:
    """Chooses between the loss from hidden states and the loss from logits, by `loss_from`.

    Args:
        args: The configuration.
        student: The student, before it is wrapped.
        teacher: The teacher.
        rows_known: As for `HiddenLoss`.
        gpus: Number of GPUs of this process.

    Raises:
        InputError: `loss_from` is "hidden" and a model cannot be split, or the contrastive term lacks hidden states.
    """
    from_logits = LogitsLoss(args, teacher)
    student_parts = parts_of("student", student, args)
    teacher_parts = None if student_parts is None else parts_of("teacher", teacher, args)
    check_contrastive(args, teacher_parts is not None and gpus <= 1)
    if teacher_parts is None:
        return from_logits
    return HiddenLoss(args, student_parts, teacher_parts, from_logits, rows_known)


def check_contrastive(args: SpanLossConfig, from_hidden: bool) -> None:
    """Checks that the loss has hidden states if the contrastive term is on.

    Raises:
        InputError: It is computed from logits.
    """
    if args.contrastive_weight and not from_hidden:
        got = f"{args.contrastive_weight} with a loss from logits"
        remedy = "Use models with a separate backbone and head, and one process per GPU; or set it to 0."
        raise InputError("contrastive_weight", "a loss from hidden states for it", got, remedy)
