"""The loss of one batch against a cache of the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sad.errors import InputError
from sad.losses import SpanStats, fused_linear_topk_span_kl, fused_topk_span_kl
from sad.model_parts import forward_as
from sad.teacher_cache.metadata import logit_columns
from sad.teacher_cache.reader import TeacherCache
from sad.training.collator import SpanCollator, model_inputs
from sad.training.loss_config import SpanLossConfig
from sad.training.losses import LossOutput, loss_options, parts_of, per_token, step_weights, warn_of_rounded_logits
from sad.training.token_weights import log_columns
from sad.trajectories.spans import supervised_kinds


class CachedLoss:
    """The loss against the top-k log-probabilities of a teacher cache, which `sad.SpanCollator` adds to each batch.

    Args:
        args: The configuration.
        student: The student, before it is wrapped.
        cache: The cache of the teacher.
        collator: The data collator.

    Raises:
        InputError: The cache cannot replace the teacher with this student and configuration.
    """

    def __init__(self, args: SpanLossConfig, student: nn.Module, cache: TeacherCache, collator: Any) -> None:
        if args.temperature != 1.0:
            remedy = "Set temperature to 1, or pass a live teacher: the top-k values do not determine the rest at another T."
            raise InputError("temperature", "1 with a teacher cache", str(args.temperature), remedy)
        if args.divergence != "forward_kl":
            remedy = "Set divergence to forward_kl, or pass a live teacher: the others need all columns of the teacher."
            raise InputError("divergence", "forward_kl with a teacher cache", args.divergence, remedy)
        if args.contrastive_weight:
            remedy = "Set contrastive_weight to 0, or pass a live teacher."
            got = str(args.contrastive_weight)
            raise InputError("contrastive_weight", "0 with a teacher cache, which has no hidden states", got, remedy)
        if not isinstance(collator, SpanCollator) or collator.teacher_cache is None:
            remedy = "Leave it out, or pass sad.SpanCollator(teacher_cache=..., max_length=...)."
            raise InputError("data_collator", "one that reads the teacher cache", type(collator).__name__, remedy)
        cache.check_observe(args.observe)
        cache.check_columns(logit_columns(student))
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
            entropy = _scattered(inputs["teacher_entropy"][:, None], inputs["loss_rows"], span_ids.shape)[..., 0]
            return 1.0 - entropy / log_columns(self._vocab_size)

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

        def forward(**batch: Tensor) -> tuple[Tensor, SpanStats, Tensor | None]:
            with accelerator.autocast():
                hidden, head = self._parts.hidden(batch), self._parts.head()

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

                return weighted(
                    lambda options: divergence(hidden, options), lambda options: divergence(hidden.detach(), options)
                )

        with forward_as(accelerator.unwrap_model(model), forward):
            loss, stats, weights = model(**batch)
        return LossOutput(loss, stats, {}, token_weights=weights)


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
