"""Rows whose columns are shared out over the ranks of a process group: each rank's kernels, merged.

A rank holds a slice of the vocabulary of both models, the same slice of each; slices lie in the order of the ranks. Two
numbers a row travel before the divergence (the log-sum-exps) and one or two after it (its value; E_q[G] where the
gradient needs it). Every rank gathers all ranks' numbers and adds them in the order of the ranks, so that all have the same
bits. The gradient of a slice then needs nothing from elsewhere.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from sadkernels.divergence import DivergenceConfig, RowValues

_groups: WeakValueDictionary[str, Any] = WeakValueDictionary()  # an op takes a name, not an object


def register(group: Any) -> str:
    """The name by which the op finds `group`."""
    _groups[group.group_name] = group
    return group.group_name


def _gather(x: Tensor, group: Any) -> Tensor:
    """(R, ...): `x` of every rank."""
    x = x.contiguous()
    everyone = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, x, group=group)
    return torch.stack(everyone)


def _global_argmax(logits: tuple[Tensor, Tensor], columns: Tensor, group: Any) -> Tensor:
    """(2, N): rank and column, as one number, of the largest logit of both sides; ties go to the lowest rank."""
    rows = columns.long().view(2, *logits[0].shape[:-1], 1)
    best = torch.stack([x.detach().gather(-1, at).reshape(-1).to(torch.float64) for x, at in zip(logits, rows)])
    winner = _gather(best, group).argmax(0)
    at = _gather(columns.long(), group).gather(0, winner[None])[0]
    return winner * 2**32 + at


def forward(
    kernel: ModuleType, student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig, *, stats: bool, group: str
) -> RowValues:
    """`kernel.forward` of the whole rows, from slices of their columns; `argmax` counts ranks and columns."""
    ranks = _groups[group]
    lse = torch.logsumexp(_gather(kernel.log_sum_exps(student, teacher, kinds, config), ranks), dim=0)
    lse = torch.where(kinds != 0, lse, 0)
    values = kernel.forward(student, teacher, kinds, config, stats=stats, lse=lse)
    value, pull = values.value, values.state[2]
    if config.divergence == "jsd":
        value, pull = _gather(torch.stack([value, pull]), ranks).sum(0)
    else:
        value = _gather(value, ranks).sum(0)
        pull = value if config.divergence == "reverse_kl" else pull
    state = torch.cat([lse, pull[None]])
    if not stats:
        return RowValues(value, state)
    entropies = _gather(values.entropies, ranks).sum(0)
    return RowValues(value, state, entropies, _global_argmax((student, teacher), values.argmax, ranks))
