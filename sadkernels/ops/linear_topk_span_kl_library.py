"""The loss against listed columns and labels from hidden states: the inputs of its ops, and the lists of a chunk."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels.divergence import RowValues
from sadkernels.ops.linear_library import LinearLoss, register
from sadkernels.ops.topk_span_kl_library import OPTIONS_SCHEMA, Options, Targets, kernel_for, loss_dtype, row_values
from sadkernels.topk import TopkTarget, TopkValues, row_labels, topk_target

NAME = "linear_topk_span_kl"
_ENTRY_BYTES = 48  # while a list is put in order: columns, their order and log-probabilities, 8 bytes each, and copies


class Inputs(NamedTuple):
    """The tensors that every op takes first, in this order."""

    student_hidden: Tensor  # (..., H)
    student_weight: Tensor  # (V, H)
    student_bias: Tensor | None
    logprobs: Tensor  # (..., k), or (M, k) of `rows`
    ids: Tensor
    target_ids: Tensor | None  # (...,)
    span_ids: Tensor
    normalizer: Tensor | None
    rows: Tensor | None  # (M,) the supervised ones, where the caller knows

    @property
    def targets(self) -> Targets:
        return Targets(self.logprobs, self.ids, self.target_ids, self.span_ids, self.normalizer)


class _Lists:
    """A `linear_chunks.Target`: a few columns of every row and its label."""

    state_rows = 2

    def __init__(self, x: Inputs, o: Options) -> None:
        self.kernel = kernel_for(x.student_hidden, x.targets, o)
        k = x.ids.shape[-1]
        self.row_bytes = k * _ENTRY_BYTES
        self._logprobs, self._ids, self._by_place = x.logprobs.reshape(-1, k), x.ids.reshape(-1, k), x.rows is not None
        self._labels = None if x.target_ids is None else row_labels(x.target_ids, o.vocab_size, o.shift)
        self._options, self._dtype = o, loss_dtype(x.student_hidden, x.targets)

    def of_rows(self, rows: Tensor, place: slice) -> TopkTarget:
        at, o = place if self._by_place else rows, self._options
        labels = None if self._labels is None else self._labels[rows]
        config = {"vocab_size": o.vocab_size, "tail": o.tail, "alpha": o.alpha, "dtype": self._dtype}
        return topk_target(self._logprobs[at], self._ids[at], labels, **config)

    def row_values(self, found: TopkValues, target: TopkTarget) -> RowValues:
        return row_values(found, target)


def _dtype(x: Inputs) -> torch.dtype:
    return loss_dtype(x.student_hidden, x.targets)


register(
    LinearLoss(
        name=NAME,
        inputs=Inputs,
        inputs_schema=(
            "Tensor student_hidden, Tensor student_weight, Tensor? student_bias, Tensor logprobs, Tensor ids, "
            "Tensor? target_ids, Tensor span_ids, Tensor? normalizer, Tensor? rows"
        ),
        options=Options,
        options_schema=OPTIONS_SCHEMA,
        dtype=_dtype,
        state_rows=_Lists.state_rows,
        target=lambda x, o, rows: _Lists(x, o),
    )
)
