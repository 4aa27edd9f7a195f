r"""The trajectory-level contrastive term: it trains a student's state to identify the teacher's trajectory.

The paper mentions such a term, optional and with weight 0.3 (appendix B), and does not define it. This is InfoNCE (arXiv
1807.03748, eq. 4). For trajectory i and kind k (reasoning or action), s_ik and t_ik are the last hidden states of student
and teacher, averaged over the rows that predict a token of that kind. a(x) are the logits that the model's own head
computes from x, minus their mean over the vocabulary. Then

    L_con = mean over (i, k) of  -log  exp(cos(a(s_ik), a(t_ik)) / tau) / sum_j exp(cos(a(s_ik), a(t_jk)) / tau)

where j runs over the trajectories of the batch. The choices:

* The states are compared in the vocabulary. The states of the two models have different sizes, and a learned projection
  would add parameters that must be saved, resumed and sharded. Both heads map into the vocabulary already. A student with
  the teacher's logits has cosine 1 with its own trajectories. A constant added to all logits has no effect on a softmax, so
  the mean is removed.
* The student's head is fixed. The term trains states, so it needs no second V x H gradient beside that of the KL.
* The rows are those of the KL: the state at t is judged by the kind of token t + 1. A kind with lambda 0 is excluded.
* Negatives come from the batch of one device, because the wrapped forward pass must not contain collectives. A trajectory
  that is alone in its batch has no negatives, and its term is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sad.model_parts import Head
from sadkernels.spans import SpanKind


def directions(
    hidden: Tensor, head: Head, span_ids: Tensor, columns: int, kinds: Sequence[SpanKind]
) -> tuple[Tensor, Tensor]:
    """Computes the unit vector of a(mean state) for every trajectory and kind.

    Args:
        hidden: (B, T, H) hidden states of one model.
        head: The head of that model.
        span_ids: (B, T).
        columns: Number V of vocabulary columns that both models have. A padded head has more.
        kinds: K kinds.

    Returns:
        Unit vectors (K, B, V), and whether each trajectory has tokens of each kind, (K, B) bool.
    """
    states, present = pooled_states(hidden, span_ids, kinds)
    return in_vocabulary(states, head, columns), present


def pooled_states(hidden: Tensor, span_ids: Tensor, kinds: Sequence[SpanKind]) -> tuple[Tensor, Tensor]:
    """Averages the hidden states over the rows that predict a token of each kind.

    Args:
        hidden: (B, T, H). Other rows are ignored, even if they are NaN.
        span_ids: (B, T).
        kinds: K kinds.

    Returns:
        Means (K, B, H), float32 or wider, 0 without such a row; and whether there is one, (K, B) bool.
    """
    next_ids = F.pad(span_ids[:, 1:], (0, 1), value=SpanKind.NONE)
    of_kind = torch.stack([next_ids == kind for kind in kinds])  # (K, B, T)
    states = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    states = states.masked_fill(~of_kind.any(0)[..., None], 0.0)
    counts = of_kind.sum(-1)
    with torch.autocast(hidden.device.type, enabled=False):
        sums = torch.einsum("kbt,bth->kbh", of_kind.to(states.dtype), states)
    return sums / counts.clamp(min=1)[..., None], counts > 0


def in_vocabulary(states: Tensor, head: Head, columns: int) -> Tensor:
    """Returns the centered logits of a head as unit vectors (..., columns).

    Args:
        states: (..., H) mean states.
        head: The head. Its parameters receive no gradient.
        columns: Number of vocabulary columns that both models have.
    """
    fixed = head._replace(weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach())
    logits = fixed.logits(states.to(head.weight.dtype))[..., :columns]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.normalize(logits - logits.mean(-1, keepdim=True), dim=-1)


def info_nce(student: Tensor, teacher: Tensor, present: Tensor, temperature: float) -> Tensor:
    """Averages the InfoNCE loss over all trajectories and kinds that have a negative.

    Args:
        student: (K, B, V) unit vectors.
        teacher: (K, B, V) unit vectors.
        present: (K, B) bool, which of them exist.
        temperature: tau > 0.

    Returns:
        A scalar in nats, 0 without negatives. There is no device synchronization.
    """
    with torch.autocast(student.device.type, enabled=False):
        scores = student @ teacher.mT / temperature  # (K, B, B), student i with teacher j
    counted = present & (present.sum(-1, keepdim=True) > 1)
    scores = scores.masked_fill(~present[:, None, :], -torch.inf)
    scores = scores.masked_fill(~counted[..., None], 0.0)  # excluded below; finite, so that the gradient is 0 and not NaN
    terms = scores.logsumexp(-1) - scores.diagonal(dim1=-2, dim2=-1)
    return torch.where(counted, terms, 0.0).sum() / counted.sum().clamp(min=1)
