"""The span loss of a student against the lists of a teacher cache, which a batch of `sad.SpanCollator` brings along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sad.errors import InputError
from sad.losses import SpanStats, fused_linear_topk_span_kl, fused_topk_span_kl
from sad.model_parts import forward_as
from sad.teacher_cache.metadata import logit_columns
from sad.teacher_cache.reader import TeacherCache
from sad.training.collator import SpanCollator
from sad.training.config import SADConfig
from sad.training.hidden_loss import parts_of
from sadkernels.kinds import SpanKind


class CachedLoss:
    """A student and the cache of its teacher.

    Args:
        student: Before it is wrapped.
        cache: Of the teacher.
        args: The configuration of the training.
        collator: That makes the batches.

    Raises:
        InputError: The cache cannot stand in for the teacher with this student and configuration.
    """

    def __init__(self, student: nn.Module, cache: TeacherCache, args: SADConfig, collator: Any) -> None:
        if args.temperature != 1.0:
            remedy = (
                "Train at temperature 1, or with a live teacher: the listed tokens do not tell the others at another one."
            )
            raise InputError("temperature", "1 with a teacher cache", str(args.temperature), remedy)
        if args.contrastive_weight:
            remedy = "Set contrastive_weight to 0, or give a live teacher."
            raise InputError("contrastive_weight", "0 with a cache, which has no hidden states", "another number", remedy)
        if not isinstance(collator, SpanCollator) or collator.teacher_cache is None:
            remedy = "Leave it out, or build it: sad.SpanCollator(teacher_cache=..., max_length=...)."
            raise InputError("data_collator", "one that reads the teacher cache", type(collator).__name__, remedy)
        if args.accelerator_config is not None and args.accelerator_config.dispatch_batches:
            remedy = "Leave dispatch_batches out: it cuts batches where their rows are not known."
            raise InputError("accelerator_config", "no dispatch_batches with a teacher cache", "true", remedy)
        cache.check_columns(logit_columns(student))
        self._columns, self._parts = cache.metadata.vocab_size, parts_of("student", student, args.loss_from)

    @property
    def from_hidden(self) -> bool:
        """Whether the loss can do without the logits."""
        return self._parts is not None

    def from_logits(
        self, logits: Tensor, inputs: Mapping[str, Tensor], *, inplace_backward: bool, **options: Any
    ) -> tuple[Tensor, SpanStats]:
        """Loss and statistics of one batch.

        Args:
            logits: (B, T, V), the student's.
            inputs: The batch.
            inplace_backward: Whether they may be written over.
            **options: Of both losses.
        """
        lists = [
            _spread(inputs[name], inputs["loss_rows"], logits.shape[:-1]) for name in ("teacher_logprobs", "teacher_ids")
        ]
        options |= {"inplace_backward": inplace_backward, "vocab_size": self._columns}
        loss, stats = fused_topk_span_kl(logits, *lists, inputs["span_ids"], **options)
        return loss, _with_entropy(stats, inputs)

    def loss(
        self,
        model: nn.Module,
        batch: Mapping[str, Tensor],
        inputs: Mapping[str, Tensor],
        accelerator: Accelerator,
        **options,
    ) -> tuple[Tensor, SpanStats]:
        """Loss and statistics of one batch from the student's hidden states, inside the call of what wraps it.

        Args:
            model: The student, wrapped or not.
            batch: What it takes.
            inputs: The whole batch.
            accelerator: That wrapped it.
            **options: Of `sad.fused_linear_topk_span_kl`.
        """

        def forward(**batch: Tensor) -> tuple[Tensor, SpanStats]:
            with accelerator.autocast():
                hidden, head = self._parts.hidden(batch), self._parts.head()
                return fused_linear_topk_span_kl(
                    hidden,
                    head.weight,
                    inputs["teacher_logprobs"],
                    inputs["teacher_ids"],
                    inputs["span_ids"],
                    student_bias=head.bias,
                    logit_scale=head.scale,
                    logit_softcap=head.softcap,
                    vocab_size=self._columns,
                    rows=inputs["loss_rows"],
                    **options,
                )

        with forward_as(accelerator.unwrap_model(model), forward):
            loss, stats = model(**batch)
        return loss, _with_entropy(stats, inputs)


def _spread(values: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    """(B, T, k) with the (M, k) values at their rows; what stands elsewhere is not looked at."""
    whole = values.new_zeros((shape.numel(), values.shape[-1]))
    return whole.index_copy_(0, rows, values).view(*shape, -1)


def _with_entropy(stats: SpanStats, inputs: Mapping[str, Tensor]) -> SpanStats:
    """The statistics with the entropy of the whole teacher, which the lists alone do not tell."""
    kinds = inputs["span_ids"].flatten()[inputs["loss_rows"] + 1]
    sums = [torch.where(kinds == kind, inputs["teacher_entropy"], 0).sum() for kind in (SpanKind.REASON, SpanKind.ACT)]
    parts = (part._replace(teacher_entropy_sum=x) for part, x in zip(stats, sums))
    return SpanStats(*parts)
