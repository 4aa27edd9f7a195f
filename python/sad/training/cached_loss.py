"""The loss of one batch against a cache of the teacher: its top-k log-probabilities, or its hidden states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sad.errors import InputError
from sad.losses import SpanStats, fused_linear_topk_span_kl, fused_topk_span_kl
from sad.model_parts import Head, ModelParts
from sad.teacher_cache.metadata import logit_columns
from sad.teacher_cache.reader import TeacherCache
from sad.training.collator import SpanCollator, model_inputs
from sad.training.loss_config import SpanLossConfig
from sad.training.loss_parts import (
    LossOutput,
    SpanLoss,
    loss_options,
    parts_of,
    per_token,
    run_loss,
    step_weights,
    warn_of_rounded_logits,
)
from sad.training.losses import HiddenLoss, LogitsLoss, check_contrastive
from sad.training.token_weights import log_columns
from sad.trajectories.spans import supervised_kinds

_INSTEAD = "Or make a cache with `sad cache --hidden`, or pass a live teacher."


def cached_loss(
    args: SpanLossConfig,
    student: nn.Module,
    cache: TeacherCache,
    collator: Any,
    *,
    device: torch.device,
    gpus: int = 1,
) -> SpanLoss:
    """Chooses the loss for the kind of a cache. `sad.SpanCollator` adds the cached values to each batch.

    Args:
        args: The configuration.
        student: The student, before it is wrapped.
        cache: The cache of the teacher.
        collator: The data collator.
        device: The training device, which receives the head of a cache of hidden states.
        gpus: Number of GPUs of this process.

    Raises:
        InputError: The cache cannot replace the teacher with this student and configuration, or it is damaged.
    """
    _check_cache(args, student, cache, collator)
    if not cache.metadata.is_hidden:
        return CachedLoss(args, student, cache)
    parts = parts_of("student", student, args)
    check_contrastive(args, parts is not None and gpus <= 1)
    head = cache.head()
    head = head._replace(weight=head.weight.to(device), bias=None if head.bias is None else head.bias.to(device))
    from_logits = CachedLogitsLoss(args, head)
    return from_logits if parts is None else CachedHiddenLoss(args, parts, head, from_logits)


def _check_cache(args: SpanLossConfig, student: nn.Module, cache: TeacherCache, collator: Any) -> None:
    if not isinstance(collator, SpanCollator) or collator.teacher_cache is None:
        remedy = "Leave it out, or pass sad.SpanCollator(teacher_cache=..., max_length=...)."
        raise InputError("data_collator", "one that reads the teacher cache", type(collator).__name__, remedy)
    if collator.teacher_cache.metadata != cache.metadata:
        got = f"{collator.teacher_cache.path!r} beside {cache.path!r}"
        raise InputError("data_collator", "one that reads the same teacher cache", got, "Leave it out.")
    cache.check_observe(args.observe)
    cache.check_columns(logit_columns(student))


class CachedLogitsLoss(LogitsLoss):
    """The loss from the student's logits and the teacher's cached hidden states, for a student that cannot be split.

    Args:
        args: The configuration.
        head: The teacher's head, on the training device.
    """

    def __init__(self, args: SpanLossConfig, head: Head) -> None:
        super().__init__(args, None)
        self._head = head

    def _teacher_logits(self, inputs: Mapping[str, Tensor], accelerator: Accelerator) -> Tensor:
        with torch.no_grad(), accelerator.autocast():
            return self._head.logits(_cached_hidden(inputs, self._head))


class CachedHiddenLoss(HiddenLoss):
    """The loss from the student's hidden states and the teacher's cached ones.

    Args:
        args: The configuration.
        student: The parts of the student, from before it is wrapped.
        head: The teacher's head, on the training device.
        from_logits: The loss for calls that need logits.
    """

    def __init__(self, args: SpanLossConfig, student: ModelParts, head: Head, from_logits: CachedLogitsLoss) -> None:
        super().__init__(args, student, None, from_logits, rows_known=True)
        self._head = head

    def _teacher_output(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Head]:
        return _cached_hidden(inputs, self._head), self._head

    def _certainty(self, inputs: Mapping[str, Tensor], hidden: Tensor, head: Head, columns: int, **options: Any) -> Tensor:
        return _cached_certainty(inputs, columns)


class CachedLoss:
    """The loss against the top-k log-probabilities of a teacher cache.

    Args:
        args: The configuration.
        student: The student, before it is wrapped.
        cache: The cache of the teacher.

    Raises:
        InputError: Top-k log-probabilities do not determine the configured loss.
    """

    def __init__(self, args: SpanLossConfig, student: nn.Module, cache: TeacherCache) -> None:
        if args.temperature != 1.0:
            remedy = f"Set temperature to 1. {_INSTEAD} The top k do not determine the softmax at another temperature."
            raise InputError("temperature", "1 with a cache of log-probabilities", str(args.temperature), remedy)
        if args.divergence != "forward_kl":
            remedy = f"Set divergence to forward_kl. {_INSTEAD} The others need all columns of the teacher."
            raise InputError("divergence", "forward_kl with a cache of log-probabilities", args.divergence, remedy)
        if args.contrastive_weight:
            remedy = f"Set contrastive_weight to 0. {_INSTEAD} The term needs the teacher's hidden states."
            got = str(args.contrastive_weight)
            raise InputError("contrastive_weight", "0 with a cache of log-probabilities", got, remedy)
        self._args, self._vocab_size = args, cache.metadata.vocab_size
        self._parts = parts_of("student", student, args)
        self._step_weights = step_weights(args)

    def __call__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        normalizer: Tensor,
        accelerator: Accelerator,
        *,
        needs_logits: bool = False,
    ) -> LossOutput:
        """See `SpanLoss`. The kernel mixes in the cross-entropy, so `ce_weight` costs nothing."""
        args, batch = self._args, model_inputs(inputs)
        topk, span_ids = (inputs["teacher_logprobs"], inputs["teacher_ids"]), inputs["span_ids"]
        common = {"vocab_size": self._vocab_size}
        mixed = {"alpha": 1.0 - args.ce_weight} | ({"target_ids": inputs["input_ids"]} if args.ce_weight else {})

        def certainty(_: dict[str, Any]) -> Tensor:
            return _cached_certainty(inputs, self._vocab_size)

        def weighted(compute: Callable[[dict[str, Any]], Any], detached: Callable[[dict[str, Any]], Any]) -> tuple:
            """Returns loss, statistics and token weights, given the loss function with and without a graph."""
            plain = common | loss_options(args, normalizer, None)
            weights = self._step_weights.of(
                inputs, model.training, certainty=certainty, divergence=lambda: detached(per_token(plain))
            )
            loss, stats = compute(plain | mixed | {"token_weights": weights})
            return loss, _with_teacher_entropy(stats, inputs, weights), weights

        if self._parts is None or needs_logits or isinstance(model, nn.DataParallel):
            outputs = model(**batch)
            warn_of_rounded_logits(model, outputs.logits, accelerator)
            topk = [_scattered(x, inputs["loss_rows"], span_ids.shape) for x in topk]
            in_place = args.inplace_backward and not needs_logits
            loss, stats, weights = weighted(
                lambda options: fused_topk_span_kl(outputs.logits, *topk, span_ids, inplace_backward=in_place, **options),
                lambda options: fused_topk_span_kl(outputs.logits.detach(), *topk, span_ids, **options),
            )
            return LossOutput(loss, stats, outputs, token_weights=weights)

        def compute(hidden: Tensor, head: Head) -> LossOutput:
            def divergence(hidden: Tensor, options: dict[str, Any]) -> Any:
                return fused_linear_topk_span_kl(
                    hidden,
                    head.weight,
                    *topk,
                    span_ids,
                    student_bias=head.bias,
                    logit_scale=head.scale,
                    logit_softcap=head.softcap,
                    rows=inputs["loss_rows"],
                    chunk_bytes=args.loss_chunk_bytes,
                    **options,
                )

            loss, stats, weights = weighted(
                lambda options: divergence(hidden, options), lambda options: divergence(hidden.detach(), options)
            )
            return LossOutput(loss, stats, {}, token_weights=weights)

        return run_loss(self._parts, model, inputs, accelerator, compute)


def _cached_hidden(inputs: Mapping[str, Tensor], head: Head) -> Tensor:
    """Returns the cached hidden states (B, T, H) in the dtype of the head. The rows without a loss are 0."""
    return _scattered(inputs["teacher_hidden"].to(head.weight.dtype), inputs["loss_rows"], inputs["span_ids"].shape)


def _cached_certainty(inputs: Mapping[str, Tensor], columns: int) -> Tensor:
    """Returns 1 - H / log V of the teacher for each row (B, T), from the cached entropies."""
    entropy = _scattered(inputs["teacher_entropy"][:, None], inputs["loss_rows"], inputs["span_ids"].shape)[..., 0]
    return 1.0 - entropy / log_columns(columns)


def _scattered(values: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    """Returns (B, T, k) with the values (M, k) at their rows. The loss does not read the other rows."""
    whole = values.new_zeros((shape.numel(), values.shape[-1]))
    return whole.index_copy_(0, rows, values).view(*shape, -1)


def _with_teacher_entropy(stats: SpanStats, inputs: Mapping[str, Tensor], weights: Tensor | None) -> SpanStats:
    """Replaces the entropy of the top-k values by the entropy of the whole teacher, which the cache stores."""
    kinds = inputs["span_ids"].flatten()[inputs["loss_rows"] + 1]
    if weights is not None:
        kinds = torch.where(weights.flatten()[inputs["loss_rows"] + 1] > 0, kinds, 0)  # they count as without a span
    parts = zip(supervised_kinds(observe=True), stats)
    sums = ((part, torch.where(kinds == kind, inputs["teacher_entropy"], 0).sum()) for kind, part in parts)
    return SpanStats(*(part._replace(teacher_entropy_sum=x) for part, x in sums))
