"""Inputs and the float64 truth for the tests of the span KL."""

from __future__ import annotations

import torch
from torch import Tensor

import sad


def logits(rows: int, vocab: int, dtype=torch.float32, scale: float = 3.0) -> Tensor:
    """Returns peaked logits, as trained models produce them: a few columns have most of the probability."""
    return (torch.randn(rows, vocab) * scale + 8 * (torch.rand(rows, vocab) > 0.98)).to(dtype)


class _Output(torch.autograd.Function):
    """Makes `values` the output of an operation on `leaf`, without a copy."""

    @staticmethod
    def forward(ctx, leaf: Tensor, values: Tensor) -> Tensor:
        return values.detach()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def output(values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a leaf, and logits in the memory of `values` that were computed from it: `inplace_backward` refuses a leaf."""
    leaf = values.detach().clone().requires_grad_()
    return leaf, _Output.apply(leaf, values.detach())


def run(student: Tensor, teacher: Tensor, ids: Tensor, backend, upstream: float | Tensor = 1.0, **options):
    """Returns loss and gradient of `sad.fused_span_kl` on a backend; both are moved to the CPU."""
    device = backend.device
    leaf, logits_ = output(student.to(device))
    loss = sad.fused_span_kl(logits_, teacher.to(device), ids.to(device), backend=backend.name, **options)
    loss.backward(torch.as_tensor(upstream, dtype=loss.dtype, device=device).expand(loss.shape))
    return loss.detach().cpu(), leaf.grad.cpu()


def truth(student: Tensor, teacher: Tensor, ids: Tensor, upstream: float | Tensor = 1.0, **options):
    """Returns loss and gradient of the reference in float64."""
    leaf = student.detach().double().requires_grad_()
    loss = sad.fused_span_kl(leaf, teacher.double(), ids, backend="reference", **options)
    loss.backward(torch.as_tensor(upstream, dtype=loss.dtype).expand(loss.shape))
    return loss.detach(), leaf.grad


def assert_close_to_truth(
    got: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor], dtype: torch.dtype, operand: float = 0.5
) -> None:
    """Compares the loss to 2e-6, and the gradient to two roundings of its dtype plus the error of float32 arithmetic.

    The gradient is rounded when it is stored, and again when it is scaled.

    Args:
        got: Loss and gradient.
        exact: Loss and gradient in float64.
        dtype: The dtype of the student's logits.
        operand: Magnitude of the two numbers whose difference is the gradient: probabilities, or for reverse_kl
            probabilities times logarithms of about 10.
    """
    loss, grad = got
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and grad.dtype == dtype
    torch.testing.assert_close(loss.double(), exact[0], rtol=2e-6, atol=1e-9)
    rounding = torch.finfo(dtype).eps
    smallest = 6e-8 if dtype == torch.float16 else 1e-12  # half the smallest float16; smaller values are stored as 0
    scale = max(exact[1].abs().max().item(), operand)
    torch.testing.assert_close(grad.double(), exact[1], rtol=rounding + 5e-6, atol=smallest + 1e-6 * scale)
