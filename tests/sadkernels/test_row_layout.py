"""Strides of gradients: the rows of logits and gradient begin equally far from a 16-byte border."""

from __future__ import annotations

import pytest
import torch

import sad
from sadkernels.row_layout import gradient_strides
from sadkernels.triton.launch import Launch

V = 13


def views() -> dict[str, torch.Tensor]:
    x = torch.randn(2, 5, V)
    return {
        "contiguous": x,
        "sliced time": torch.randn(2, 9, V)[:, :-1],
        "sliced columns": torch.randn(2, 5, V + 1)[..., :V],
        "time first": x.transpose(0, 1),
    }


@pytest.mark.parametrize("name", views())
def test_strides_of_the_logits(name):
    assert gradient_strides(views()[name]) == views()[name].stride()


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 5, V)[:, :1],  # four fifths of the memory would be unused
        torch.randn(1, 5, V).expand(2, 5, V),
        torch.randn(40).unfold(0, V, 3),
        torch.randn(2, 0, V),
        torch.randn(3, 3, 9, V)[:-1, :, :-1].transpose(0, 1)[:, :, ::1],
    ],
    ids=["gaps", "expanded", "overlapping", "empty", "three strides"],
)
def test_contiguous_strides(x):
    assert gradient_strides(x) == x.contiguous().stride()


@pytest.mark.parametrize("name", views())
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_gradient_is_written_with_wide_stores(name, reduction, monkeypatch):
    aligned, run = [], Launch.run

    def recorded(launch: Launch, device: torch.device) -> None:
        if "GRAD_ALIGNED" in launch.values and launch.values["grad"] is not None:
            aligned.append(launch.values["GRAD_ALIGNED"])
        run(launch, device)

    monkeypatch.setattr(Launch, "run", recorded)
    student, teacher = views()[name], torch.randn(views()[name].shape)
    ids = torch.ones(student.shape[:-1], dtype=torch.long)
    leaf = student.detach().requires_grad_()
    sad.fused_span_kl(leaf, teacher, ids, reduction=reduction, backend="triton").sum().backward()
    exact = student.detach().double().requires_grad_()
    sad.fused_span_kl(exact, teacher.double(), ids, reduction=reduction, backend="reference").sum().backward()
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-5, atol=1e-7)
    assert aligned and all(aligned)
