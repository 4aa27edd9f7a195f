"""The loss of one batch, from the logits of both models or from their hidden states.

`SADTrainer` chooses `LogitsLoss`, `HiddenLoss` or `CachedLoss` when it is built, and calls it as a `SpanLoss`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers.utils import logging

from sad.errors import InputError
from sad.losses import (
    SpanStats,
    fused_linear_span_kl,
    fused_linear_topk_span_kl,
    fused_span_ce,
    fused_span_kl,
)
from sad.model_parts import Head, ModelParts, forward_as, split_model
from sad.training.collator import model_inputs
from sad.training.contrastive import directions, info_nce
from sad.training.loss_config import SpanLossConfig
from sad.training.teacher import teacher_logits, vocabulary_group
from sad.training.token_weights import StepWeights, log_columns
from sad.trajectories.spans import supervised_kinds

logger = logging.get_logger(__name__)

_16_BIT = (torch.bfloat16, torch.float16)
_ROUNDED_LOGITS = (
    "The loss is computed from logits in 16 bits. Their rounding can change its gradient by 10 % and more when student and "
    "teacher are close. Use loss_from='hidden', or a student in float32 without mixed precision."
)


class LossOutput(NamedTuple):
    """What a `SpanLoss` returns.

    Attributes:
        loss: Scalar, divided by the normalizer.
        stats: Sums over the supervised tokens. `kl_sum` holds the loss that is trained: the divergence, mixed with the
            cross-entropy by `ce_weight`.
        outputs: The model's outputs, or an empty dict if no logits were computed.
        contrastive: The contrastive term, a scalar without its weight, or None.
        token_weights: (B, T) the weight of each token, or None if all are 1.
    """

    loss: Tensor
    stats: SpanStats
    outputs: Any
    contrastive: Tensor | None = None
    token_weights: Tensor | None = None


class SpanLoss(Protocol):
    """Computes the loss of one batch."""

    def __call__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        normalizer: Tensor,
        accelerator: Accelerator,
        *,
        needs_logits: bool = False,
    ) -> LossOutput:
        """Runs the models on a batch and returns the loss.

        Args:
            model: The student, wrapped or not. In training mode, a configured contrastive term is computed.
            inputs: A batch of `sad.SpanCollator`.
            normalizer: Number by which the loss is divided: the supervised tokens of the step, or the sum of their weights.
            accelerator: The accelerator that wrapped the model.
            needs_logits: Whether the caller reads `outputs.logits`.
        """


class LogitsLoss:
    """The loss from the logits of both models.

    Args:
        args: The configuration.
        teacher: The teacher.
    """

    def __init__(self, args: SpanLossConfig, teacher: nn.Module) -> None:
        self._args, self._teacher, self._step_weights = args, teacher, step_weights(args)

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
        teacher = teacher_logits(self._teacher, batch, accelerator)
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
                outputs.logits.detach(), teacher, span_ids, **per_token(_divergence_options(args, normalizer, None))
            ),
        )
        loss, stats = fused_span_kl(
            outputs.logits,
            teacher,
            span_ids,
            inplace_backward=args.inplace_backward and not needs_logits and not args.ce_weight,
            process_group=group,
            **_divergence_options(args, normalizer, weights),
        )
        if args.ce_weight:
            options = ce_options(args, normalizer, weights, columns)
            ce = fused_span_ce(outputs.logits, inputs["input_ids"], span_ids, **options)
            loss, stats = _mixed(args.ce_weight, (loss, stats), ce)
        return LossOutput(loss, stats, outputs, token_weights=weights)

    def _vocabulary_group(
        self, model: nn.Module, logits: Tensor, teacher: Tensor, accelerator: Accelerator
    ) -> ProcessGroup | None:
        """Returns the processes that share the vocabulary, or None if the logits are whole."""
        student_group = vocabulary_group(accelerator.unwrap_model(model), logits, accelerator)
        teacher_group = vocabulary_group(self._teacher, teacher, accelerator)
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
        teacher: The parts of the teacher.
        from_logits: The loss for calls that need logits.
        rows_known: Whether `loss_rows` of a training batch are right. Accelerate may split the batches of an iterable
            dataset without knowing about row numbers. If they are not, finding the rows synchronizes the device.
    """

    def __init__(
        self, args: SpanLossConfig, student: ModelParts, teacher: ModelParts, from_logits: LogitsLoss, rows_known: bool
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
            teacher_hidden, teacher_head = self._teacher.hidden(model_inputs(inputs)), self._teacher.head()

        def forward(**batch: Tensor) -> tuple[Tensor, SpanStats, Tensor | None, Tensor | None]:
            with accelerator.autocast():
                hidden, head = self._student.hidden(batch), self._student.head()
                linear = {"rows": rows, "chunk_bytes": args.loss_chunk_bytes}
                columns = min(len(head.weight), len(teacher_head.weight))

                def divergence(hidden: Tensor, options: dict[str, Any]) -> Any:
                    return fused_linear_span_kl(
                        hidden,
                        head.weight,
                        teacher_hidden,
                        teacher_head.weight,
                        span_ids,
                        student_bias=head.bias,
                        teacher_bias=teacher_head.bias,
                        logit_scale=(head.scale, teacher_head.scale),
                        logit_softcap=(head.softcap, teacher_head.softcap),
                        **linear,
                        **options,
                    )

                weights = self._step_weights.of(
                    inputs,
                    model.training,
                    certainty=lambda options: (
                        _divergence_from_uniform(teacher_hidden, teacher_head, span_ids, columns, **linear, **options)
                        / log_columns(columns)
                    ),
                    divergence=lambda: divergence(hidden.detach(), per_token(_divergence_options(args, normalizer, None))),
                )
                result = divergence(hidden, _divergence_options(args, normalizer, weights))
                if args.ce_weight:
                    options = ce_options(args, normalizer, weights, columns)
                    ce = linear_span_ce(hidden, head, inputs, **linear, **options)
                    result = _mixed(args.ce_weight, result, ce)
                contrastive = None
                if args.contrastive_weight and model.training:
                    contrastive = self._contrastive(span_ids, columns, (hidden, head), (teacher_hidden, teacher_head))
                return *result, contrastive, weights

        with forward_as(accelerator.unwrap_model(model), forward):
            loss, stats, contrastive, weights = model(**model_inputs(inputs))
        return LossOutput(loss, stats, {}, contrastive, weights)

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
    if args.contrastive_weight and (teacher_parts is None or gpus > 1):
        got = f"{args.contrastive_weight} with a loss from logits"
        remedy = "Use models with a separate backbone and head, and one process per GPU; or set it to 0."
        raise InputError("contrastive_weight", "a loss from hidden states for it", got, remedy)
    if teacher_parts is None:
        return from_logits
    return HiddenLoss(args, student_parts, teacher_parts, from_logits, rows_known)


def warn_of_rounded_logits(model: nn.Module, logits: Tensor, accelerator: Accelerator) -> None:
    """Warns once if a training loss comes from logits that were computed in 16 bits."""
    if model.training and (accelerator.mixed_precision in ("bf16", "fp16") or logits.dtype in _16_BIT):
        logger.warning_once(_ROUNDED_LOGITS)


def parts_of(name: str, model: nn.Module, args: SpanLossConfig) -> ModelParts | None:
    """Splits a model for the loss from hidden states. Returns None for the loss from logits.

    Args:
        name: "student" or "teacher", for messages.
        model: The model.
        args: The configuration.

    Raises:
        InputError: `loss_from` is "hidden" and the model cannot be split.
    """
    if args.loss_from == "logits":
        return None
    try:
        return split_model(model, args.logit_scale, args.logit_softcap)
    except ValueError as error:
        if args.loss_from == "hidden":
            remedy = "Use loss_from='auto', which uses the logits for such a model."
            got = f"a {name} without them: {error}"
            raise InputError("loss_from", "models with a separate backbone and head", got, remedy) from error
        logger.warning("The loss is computed from logits, because the %s cannot be split: %s.", name, error)
        return None


def step_weights(args: SpanLossConfig) -> StepWeights:
    """Returns the factor of `token_weighting`."""
    return StepWeights(args.token_weighting, args.step_weight_limit, args.observe, args.backend)


def loss_options(args: SpanLossConfig, normalizer: Tensor, token_weights: Tensor | None) -> dict[str, Any]:
    """Returns the options that every loss function takes."""
    return {
        "lambda_reason": args.lambda_reason,
        "lambda_act": args.lambda_act,
        "lambda_observe": args.lambda_observe,
        "temperature": args.temperature,
        "normalizer": normalizer,
        "token_weights": token_weights,
        "shift": True,
        "return_stats": True,
        "backend": args.backend,
    }


def per_token(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options with which a loss function returns the value of each row, without weights."""
    return options | {"reduction": "none", "return_stats": False, "normalizer": None, "token_weights": None}


def _divergence_options(args: SpanLossConfig, normalizer: Tensor, token_weights: Tensor | None) -> dict[str, Any]:
    return loss_options(args, normalizer, token_weights) | {"divergence": args.divergence, "beta": args.beta}


def ce_options(args: SpanLossConfig, normalizer: Tensor, token_weights: Tensor | None, columns: int) -> dict[str, Any]:
    """Returns the options of the cross-entropy: the columns of the divergence, at temperature 1."""
    return loss_options(args, normalizer, token_weights) | {"temperature": 1.0, "vocab_size": columns}


def _divergence_from_uniform(hidden: Tensor, head: Head, span_ids: Tensor, columns: int, **options: Any) -> Tensor:
    """Returns KL(softmax || uniform over the columns) of each row (B, T): `fused_linear_span_kl` with a student of zeros."""
    return fused_linear_span_kl(
        hidden.new_zeros((*hidden.shape[:-1], 1)),
        head.weight.new_zeros((columns, 1)),
        hidden,
        head.weight,
        span_ids,
        teacher_bias=head.bias,
        logit_scale=(1.0, head.scale),
        logit_softcap=(None, head.softcap),
        vocab_size=columns,
        **options,
    )


def linear_span_ce(
    hidden: Tensor, head: Head, inputs: Mapping[str, Tensor], *, rows: Tensor | None, **options: Any
) -> tuple[Tensor, SpanStats]:
    """Returns `fused_span_ce` from hidden states: `fused_linear_topk_span_kl` with alpha 0 and no teacher columns."""
    shape = (*(hidden.shape[:-1] if rows is None else rows.shape), 1)
    return fused_linear_topk_span_kl(
        hidden,
        head.weight,
        torch.zeros(shape, device=hidden.device),
        torch.full(shape, -1, dtype=torch.int32, device=hidden.device),  # an id outside the vocabulary is ignored
        inputs["span_ids"],
        tail="ignore",
        target_ids=inputs["input_ids"],
        alpha=0.0,
        student_bias=head.bias,
        logit_scale=head.scale,
        logit_softcap=head.softcap,
        rows=rows,
        **options,
    )


def _mixed(ce_weight: float, divergence: tuple[Tensor, SpanStats], ce: tuple[Tensor, SpanStats]) -> tuple[Tensor, SpanStats]:
    """Returns (1 - ce_weight) * divergence + ce_weight * CE, for the loss and for both sums of the statistics."""
    parts = [
        part._replace(kl_sum=(1.0 - ce_weight) * part.kl_sum + ce_weight * other.kl_sum)
        for part, other in zip(divergence[1], ce[1])
    ]
    return (1.0 - ce_weight) * divergence[0] + ce_weight * ce[0], SpanStats(*parts)
