"""Inputs for the tests of the losses from hidden states, and the float64 truth computed from the full logits."""

from __future__ import annotations

import torch
from torch import Tensor

import sad

V, H_S, H_T, K = 203, 24, 40, 11


class Problem:
    """Hidden states of the student, a head with a bias, and span ids; `leaves` are the tensors that receive gradients."""

    def __init__(self, shape=(4, 9), dtype=torch.float32, vocab=(V, V), supervised: float = 0.6, device="cpu") -> None:
        self.dtype, self.device = dtype, device
        self.leaves = [
            x.requires_grad_()
            for x in (
                self.normal(*shape, H_S),
                self.normal(vocab[0], H_S, scale=0.4),
                self.normal(vocab[0]),
            )
        ]
        self.ids = torch.randint(1, 3, shape, device=device) * (torch.rand(shape, device=device) < supervised)
        self._make_teacher(shape, vocab[1])

    def normal(self, *size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size) * scale).to(self.dtype).to(self.device)

    def _make_teacher(self, shape: tuple[int, ...], vocab: int) -> None:
        raise NotImplementedError

    def linear(self, backend: str = "auto", **options):
        """Returns the loss from hidden states."""
        raise NotImplementedError

    def on_logits(self, logits: Tensor, **options):
        """Returns the loss of the reference from logits in float64."""
        raise NotImplementedError

    def poison(self, rows: Tensor) -> None:
        """Writes inf or NaN to the teacher side of these rows. `rows` is a mask in the shape of the span ids."""
        raise NotImplementedError

    def exact(self, upstream: float | Tensor = 1.0, **options) -> tuple[Tensor, list[Tensor]]:
        """Returns loss and gradients in float64, from the full logits."""
        hidden, weight, bias = (x.detach().double().requires_grad_() for x in self.leaves)
        loss = self.on_logits(hidden @ weight.T + bias, **options)
        loss.backward(torch.as_tensor(upstream, dtype=loss.dtype, device=loss.device).expand(loss.shape))
        return loss.detach(), [x.grad for x in (hidden, weight, bias)]

    def gradients(self, loss: Tensor, upstream: float | Tensor = 1.0) -> list[Tensor]:
        for leaf in self.leaves:
            leaf.grad = None
        loss.backward(torch.as_tensor(upstream, dtype=loss.dtype, device=loss.device).expand(loss.shape))
        return [leaf.grad for leaf in self.leaves]


class Dense(Problem):
    """The span KL to a teacher's hidden states and head."""

    def _make_teacher(self, shape: tuple[int, ...], vocab: int) -> None:
        self.teacher = self.normal(*shape, H_T), self.normal(vocab, H_T, scale=0.3), self.normal(vocab)

    def linear(self, backend: str = "auto", **options):
        hidden, weight, bias = self.leaves
        t_hidden, t_weight, t_bias = self.teacher
        biases = {"student_bias": bias, "teacher_bias": t_bias}
        given = (hidden, weight, t_hidden, t_weight, self.ids)
        return sad.fused_linear_span_kl(*given, **biases, backend=backend, **options)

    def on_logits(self, logits: Tensor, **options):
        t_hidden, t_weight, t_bias = (x.double() for x in self.teacher)
        return sad.fused_span_kl(logits, t_hidden @ t_weight.T + t_bias, self.ids, backend="reference", **options)

    def poison(self, rows: Tensor) -> None:
        self.teacher[0][rows] = torch.inf


class Topk(Problem):
    """The KL to a teacher's top-k columns, mixed with cross-entropy."""

    def _make_teacher(self, shape: tuple[int, ...], vocab: int) -> None:
        logits = 3 * torch.randn(*shape, vocab, device=self.device)
        self.teacher = logits.log_softmax(-1).topk(K)
        self.mixture = {"target_ids": torch.randint(0, vocab, shape, device=self.device), "alpha": 0.6}

    def linear(self, backend: str = "auto", **options):
        hidden, weight, bias = self.leaves
        logprobs, ids = self.teacher
        if (rows := options.get("rows")) is not None:  # then the top-k lists belong to these rows
            logprobs, ids = (x.flatten(0, -2)[rows] for x in (logprobs, ids))
        options = self.mixture | options
        return sad.fused_linear_topk_span_kl(
            hidden, weight, logprobs, ids, self.ids, student_bias=bias, backend=backend, **options
        )

    def on_logits(self, logits: Tensor, **options):
        options = self.mixture | options
        return sad.fused_topk_span_kl(logits, *self.teacher, self.ids, backend="reference", **options)

    def poison(self, rows: Tensor) -> None:
        self.teacher[0][rows] = torch.nan


def assert_close(got: tuple[Tensor, list[Tensor]], exact: tuple[Tensor, list[Tensor]], dtype=torch.float32) -> None:
    """Compares loss and gradients up to the rounding of logits in `dtype`, relative to the largest entry."""
    tolerance = {torch.float64: 1e-11, torch.float32: 5e-6, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    torch.testing.assert_close(got[0].double(), exact[0], rtol=tolerance, atol=tolerance * float(exact[0].abs().max()))
    assert_gradients_close(got[1], exact[1], dtype)


def assert_gradients_close(got: list[Tensor], exact: list[Tensor], dtype=torch.float32) -> None:
    """Compares gradients as `assert_close` does."""
    tolerance = {torch.float64: 1e-11, torch.float32: 5e-6, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    for g, e in zip(got, exact):
        assert g.dtype == dtype
        torch.testing.assert_close(g.double(), e, rtol=0, atol=tolerance * max(float(e.abs().max()), 1e-3))
