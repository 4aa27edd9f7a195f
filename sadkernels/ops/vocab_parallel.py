"""Rows whose columns are split over the ranks of a process group.

Each rank holds a slice of the vocabulary of both models: the same slice of each, in the order of the ranks. Before the
divergence the ranks exchange four numbers per row (the log-sum-exps), after it one or two (its value, and E_q[dD/dlog q] if
the gradient needs it). Every rank gathers the numbers of all ranks and adds them in the order of the ranks, so all ranks get
the same bits. The gradient of a slice then needs no communication.
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
    """The name under which `Kernel` finds `group`."""
    _groups[group.group_name] = group
    return group.group_name


class Kernel:
    """A backend's span KL on rows that are split over a process group.

    Args:
        kernel: The backend's functions.
        group: The name that `register` returned.
    """

    def __init__(self, kernel: ModuleType, group: str) -> None:
        self._kernel, self._group = kernel, _groups[group]
        self.new_logits, self.backward = kernel.new_logits, kernel.backward

    def forward(
        self, student: Tensor, teacher: Tensor, kinds: Tensor, config: DivergenceConfig, *, stats: bool
    ) -> RowValues:
        """The values of the whole rows from slices of their columns; `argmax` combines rank and column."""
        lse = merged(self._gather(self._kernel.log_sum_exps(student, teacher, kinds, config)), config)
        lse = torch.where(kinds != 0, lse, 0)
        values = self._kernel.forward(student, teacher, kinds, config, stats=stats, lse=lse)
        value, mean_dlogp = values.value, values.state[2]
        if config.divergence == "jsd":
            value, mean_dlogp = self._gather(torch.stack([value, mean_dlogp])).sum(0)
        else:
            value = self._gather(value).sum(0)
            mean_dlogp = value if config.divergence == "reverse_kl" else mean_dlogp
        state = torch.cat([lse[:2], mean_dlogp[None], lse[2:]])
        if not stats:
            return RowValues(value, state)
        entropies = self._gather(values.entropies).sum(0)
        return RowValues(value, state, entropies, self._argmax((student, teacher), values.argmax))

    def _gather(self, x: Tensor) -> Tensor:
        """(R, ...): `x` of each rank."""
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(parts, x, group=self._group)
        return torch.stack(parts)

    def _argmax(self, logits: tuple[Tensor, Tensor], columns: Tensor) -> Tensor:
        """(2, N): rank and column of the largest logit of both sides, as one number; ties: the lowest rank."""
        rows = columns.long().view(2, *logits[0].shape[:-1], 1)
        best = torch.stack([x.detach().gather(-1, at).reshape(-1).to(torch.float64) for x, at in zip(logits, rows)])
        winner = self._gather(best).argmax(0)
        at = self._gather(columns.long()).gather(0, winner[None])[0]
        return winner * 2**32 + at


def merged(parts: Tensor, config: DivergenceConfig) -> Tensor:
    """The log-sum-exps (4, N) of whole rows from those of their slices (R, 4, N): log-sums of both sides, then origins."""
    log_sums, origins = parts.double().chunk(2, dim=1)
    factors = torch.tensor(config.factors, dtype=torch.float64, device=parts.device)[:, None]
    origin = torch.where(log_sums == -torch.inf, -torch.inf, origins).amax(0)
    origin = torch.where(origin == -torch.inf, 0, origin)
    log_sum = torch.logsumexp(log_sums + factors * (origins - origin), dim=0)
    return torch.cat([log_sum, origin]).to(parts.dtype)
