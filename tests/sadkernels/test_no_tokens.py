"""Sequences of no tokens: every loss is exactly 0, every gradient empty."""

from __future__ import annotations

import pytest
import torch

import sad


@pytest.mark.parametrize("reduction", ["mean", "span_mean", "sum", "none"])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("lead", [(3, 0), (0, 5), (2, 0, 3)])
def test_logits(backend, lead, shift, reduction):
    student = torch.randn(*lead, 60, device=backend.device).requires_grad_()
    ids = torch.ones(lead, dtype=torch.long, device=backend.device)
    options = {"reduction": reduction, "shift": shift, "backend": backend.name}
    for loss in (
        sad.fused_span_kl(student, torch.randn_like(student), ids, **options),
        sad.fused_span_ce(student, ids, ids, **options),
        sad.fused_topk_span_kl(student, *student.detach().log_softmax(-1).topk(4), ids, **options),
    ):
        assert loss.shape == (lead if reduction == "none" else ()) and not loss.any()
        loss.sum().backward()
    assert student.grad.shape == student.shape


def test_broadcast_rows_are_not_taken_for_rows_of_one_stride():
    """The phase of an expanded dimension does not change from row to row, that of its partner does."""
    launch = pytest.importorskip("sadkernels.triton.launch")
    student, teacher = torch.zeros(2, 3, 15).bfloat16(), torch.zeros(1, 3, 15).bfloat16().expand(2, 3, 15)
    rows = torch.arange(6)
    offsets = [[x[i // 3, i % 3].data_ptr() // 2 % 8 for i in rows.tolist()] for x in (student, teacher)]
    assert offsets[0] != offsets[1] and not launch.same_phase(student, teacher, 8)
    assert launch.same_phase(student, student, 8) and launch.same_phase(teacher, teacher, 8)
