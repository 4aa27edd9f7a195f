"""What the losses of a batch share: their result, the call of the student, and the options of the loss functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.utils import logging

from sad.errors import InputError
from sad.losses import (
    SpanStats,
    fused_linear_span_kl,
    fused_linear_topk_span_kl,
)
from sad.model_parts import Head, ModelParts, split_model
from sad.training.collator import model_inputs
from sad.training.loss_config import SpanLossConfig
from sad.training.token_weights import StepWeights

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


def run_loss(
    parts: ModelParts,
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    accelerator: Accelerator,
    compute: Callable[[Tensor, Head], LossOutput],
) -> LossOutput:
    """Computes a loss from hidden states inside the call of the student and of its head, so that the hooks of DDP, FSDP and
    DeepSpeed fire.

    Only the loss passes through the hooks, which may cast it: FSDP2 in bfloat16 would round the statistics too. The value
    that is returned is the exact one.

    Args:
        parts: The parts of the student.
        model: The student, wrapped or not.
        inputs: A batch of `sad.SpanCollator`.
        accelerator: The accelerator that wrapped the model.
        compute: Receives the hidden states and the head.
    """
    outputs: list[LossOutput] = []

    def loss(hidden: Tensor, head: Head) -> Tensor:
        outputs.append(compute(hidden, head))
        contrastive = outputs[-1].contrastive
        return outputs[-1].loss if contrastive is None else torch.stack([outputs[-1].loss, contrastive])

    inner = accelerator.unwrap_model(model)
    passed = parts.run(model, inner, model_inputs(inputs), loss, accelerator.autocast)
    [output] = outputs
    if output.contrastive is None:
        return output._replace(loss=_with_graph_of(passed, output.loss))
    return output._replace(
        loss=_with_graph_of(passed[0], output.loss), contrastive=_with_graph_of(passed[1], output.contrastive)
    )


def _with_graph_of(passed: Tensor, exact: Tensor) -> Tensor:
    """Returns the value `exact`, whose gradient flows through `passed`."""
    if passed.dtype == exact.dtype:
        return passed
    passed = passed.to(exact.dtype)
    return passed + (exact - passed).detach()


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


def head_options(student: Head, teacher: Head) -> dict[str, Any]:
    """Returns the options of `fused_linear_span_kl` that describe both heads besides their weights."""
    return {
        "student_bias": student.bias,
        "teacher_bias": teacher.bias,
        "logit_scale": (student.scale, teacher.scale),
        "logit_softcap": (student.softcap, teacher.softcap),
    }


def per_token(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options with which a loss function returns the value of each row, without weights."""
    return options | {"reduction": "none", "return_stats": False, "normalizer": None, "token_weights": None}


def divergence_options(args: SpanLossConfig, normalizer: Tensor, token_weights: Tensor | None) -> dict[str, Any]:
    return loss_options(args, normalizer, token_weights) | {"divergence": args.divergence, "beta": args.beta}


def ce_options(args: SpanLossConfig, normalizer: Tensor, token_weights: Tensor | None, columns: int) -> dict[str, Any]:
    """Returns the options of the cross-entropy: the columns of the divergence, at temperature 1."""
    return loss_options(args, normalizer, token_weights) | {"temperature": 1.0, "vocab_size": columns}


def divergence_from_uniform(hidden: Tensor, head: Head, span_ids: Tensor, columns: int, **options: Any) -> Tensor:
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


def mixed(ce_weight: float, divergence: tuple[Tensor, SpanStats], ce: tuple[Tensor, SpanStats]) -> tuple[Tensor, SpanStats]:
    """Returns (1 - ce_weight) * divergence + ce_weight * CE, for the loss and for both sums of the statistics."""
    parts = [
        part._replace(kl_sum=(1.0 - ce_weight) * part.kl_sum + ce_weight * other.kl_sum)
        for part, other in zip(divergence[1], ce[1])
    ]
    return (1.0 - ce_weight) * divergence[0] + ce_weight * ce[0], SpanStats(*parts)
