r"""The trajectory-level contrastive term: to which of the teacher's trajectories does a state of the student belong?

The paper names such a term, optional and of weight 0.3 (appendix B), and says no more of it. Here it is InfoNCE
(arXiv 1807.03748, eq. 4). Of trajectory i and kind k (reasoning or action), let s and t be the student's and the teacher's
last hidden states, averaged over the rows that predict a token of that kind, and a(x) what the model's own head makes of x,
less its mean over the vocabulary. Then

    L_con = mean over (i, k) of  -log  exp(cos(a(s_ik), a(t_ik)) / tau) / sum_j exp(cos(a(s_ik), a(t_jk)) / tau)

where j runs over the trajectories of the same batch. Choices:

* States of two models lie in spaces of two sizes. A learned projection between them would be parameters to save, to resume
  and to share among processes, of no use after training. The heads are maps into one space already, the vocabulary; there
  a student whose logits are the teacher's has a cosine of 1 with its own trajectories. (A constant added to all logits means
  nothing, hence "less its mean".) Both terms want that; but InfoNCE goes on to push other trajectories away.
* The student's head is held fixed in this term: it trains states, and makes no gradient of V x H beside that of the KL.
* Rows are those of the KL: the state at t is judged by the kind of token t + 1. A kind whose lambda is 0 has no part.
* Negatives come from the batch of one device, since nothing may be exchanged inside the wrapped forward pass. A trajectory
  that is alone in its batch has none, and its term is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sad.model_parts import Head
from sadkernels.kinds import SpanKind


def directions(
    hidden: Tensor, head: Head, span_ids: Tensor, columns: int, kinds: Sequence[SpanKind]
) -> tuple[Tensor, Tensor]:
    """a(mean state) of every trajectory and kind, and which there are.

    Args:
        hidden: (B, T, H), of one model.
        head: Of the same.
        span_ids: (B, T).
        columns: V, those of the vocabulary that both models have; a padded head has more.
        kinds: K of them.

    Returns:
        (K, B, V), of length 1; and (K, B) bool.
    """
    states, present = pooled_states(hidden, span_ids, kinds)
    return in_vocabulary(states, head, columns), present


def pooled_states(hidden: Tensor, span_ids: Tensor, kinds: Sequence[SpanKind]) -> tuple[Tensor, Tensor]:
    """Means over the rows that predict a token of each kind.

    Args:
        hidden: (B, T, H); rows of other kinds are not read, whatever they hold.
        span_ids: (B, T).
        kinds: K of them.

    Returns:
        (K, B, H), at least float32, 0 where there is no such row; and where there is one, (K, B) bool.
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
    """Directions (..., columns) of what a head makes of `states` (..., H): of length 1, without their mean.

    Args:
        states: Pooled.
        head: Held fixed: its parameters get no gradient from here.
        columns: Those that both models have; a padded head has more.
    """
    fixed = head._replace(weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach())
    logits = fixed.logits(states.to(head.weight.dtype))[..., :columns]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.normalize(logits - logits.mean(-1, keepdim=True), dim=-1)


def info_nce(student: Tensor, teacher: Tensor, present: Tensor, temperature: float) -> Tensor:
    """The mean over all trajectories and kinds that have something to be told from, 0 if there is none.

    Args:
        student: (K, B, V), directions of length 1.
        teacher: Likewise.
        present: (K, B) bool, which of them exist.
        temperature: tau > 0.

    Returns:
        A scalar in nats. Nothing here waits for the device.
    """
    with torch.autocast(student.device.type, enabled=False):
        scores = student @ teacher.mT / temperature  # (K, B, B), row i of the student with all j of the teacher
    counted = present & (present.sum(-1, keepdim=True) > 1)
    scores = scores.masked_fill(~present[:, None, :], -torch.inf)
    scores = scores.masked_fill(~counted[..., None], 0.0)  # finite where left out below, for a gradient of 0, not NaN
    terms = scores.logsumexp(-1) - scores.diagonal(dim1=-2, dim2=-1)
    return torch.where(counted, terms, 0.0).sum() / counted.sum().clamp(min=1)
