"""The cross-entropy on the tokens of the trajectories: training without a teacher."""

from __future__ import annotations

from collections.abc import Mapping

from accelerate import Accelerator
from torch import Tensor, nn

from sad.errors import InputError
from sad.losses import fused_span_ce
from sad.model_parts import Head
from sad.training.collator import model_inputs
from sad.training.loss_config import SpanLossConfig
from sad.training.loss_parts import LossOutput, ce_options, linear_span_ce, parts_of, run_loss, warn_of_rounded_logits


class ImitationLoss:
    """The loss without a teacher: `fused_span_ce`, the negative log-probability of each supervised token.

        L = sum over supervised tokens of lambda(kind) * w * -log p_S(x)   /   sum of w          (paper eq. 13)

    The entropies and agreements of its statistics are those of the one-hot target: entropy 0, and agreement if the student's
    most likely token is the trajectory's.

    Args:
        args: The configuration; `ce_weight` is 1.
        student: The student, before it is wrapped.
        rows_known: As for `sad.training.losses.HiddenLoss`.

    Raises:
        InputError: The configuration needs a teacher.
    """

    def __init__(self, args: SpanLossConfig, student: nn.Module, rows_known: bool) -> None:
        needs = {"ce_weight": (args.ce_weight, 1.0), "contrastive_weight": (args.contrastive_weight, 0.0)}
        for name, (value, without) in {**needs, "token_weighting": (args.token_weighting, "none")}.items():
            if value != without:
                raise InputError(name, f"{without} without a teacher", repr(value), "Pass teacher_model or teacher_cache.")
        self._args, self._parts, self._rows_known = args, parts_of("student", student, args), rows_known

    def __call__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        normalizer: Tensor,
        accelerator: Accelerator,
        *,
        needs_logits: bool = False,
    ) -> LossOutput:
        """See `sad.training.loss_parts.SpanLoss`."""
        args, weights = self._args, inputs.get("token_weights")
        if self._parts is None or needs_logits or isinstance(model, nn.DataParallel):
            outputs = model(**model_inputs(inputs))
            warn_of_rounded_logits(model, outputs.logits, accelerator)
            options = ce_options(args, normalizer, weights, outputs.logits.shape[-1])
            loss, stats = fused_span_ce(outputs.logits, inputs["input_ids"], inputs["span_ids"], **options)
            return LossOutput(loss, stats, outputs, token_weights=weights)
        rows = inputs.get("loss_rows") if model.training and self._rows_known else None

        def compute(hidden: Tensor, head: Head) -> LossOutput:
            options = ce_options(args, normalizer, weights, len(head.weight))
            linear = {"rows": rows, "chunk_bytes": args.loss_chunk_bytes}
            return LossOutput(*linear_span_ce(hidden, head, inputs, **linear, **options), {}, token_weights=weights)

        return run_loss(self._parts, model, inputs, accelerator, compute)
