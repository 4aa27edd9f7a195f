"""The tensors of a case, and its loss and gradients in float64, computed with PyTorch alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels.bench.cases import Case

_CHUNK = 1 << 24  # elements of a chunk of float64 logits: 128 MiB
_SAMPLED_ROWS, _SAMPLED_COLUMNS = 64, 256
_FLOAT16_SCALE = 1024.0  # as a gradient scaler does; without it most gradients of a mean over rows underflow


class Reference(NamedTuple):
    """Float64 reference values.

    Attributes:
        loss: The mean loss of the supervised rows.
        gradients: The parts of the gradients that `Problem.sampled_gradients` returns.
    """

    loss: float
    gradients: tuple[Tensor, ...]


class Problem(ABC):
    """The inputs of one case.

    Student, from logits: `student` (N, V). From hidden states: `student_hidden` (N, H_s), `student_weight` (V, H_s).
    Teacher, from logits: `teacher` (N, V). From hidden states: `teacher_hidden` (N, H_t), `teacher_weight` (V, H_t). If the
    case has `k`: `teacher_logprobs` (N, k) float32 and `teacher_ids` (N, k) int64 in their place.
    Spans: `span_ids` (N,) int64, 0 none, 1 reason, 2 act.

    `leaves` are the tensors that receive gradients, the student's logits or hidden states first. In-place work overwrites
    them until `reset`.

    Args:
        case: The sizes.
        device: The device of the tensors.
        seed: Seed of the random inputs.
    """

    def __init__(self, case: Case, device: torch.device, seed: int = 0) -> None:
        self.case, self.device = case, device
        self.scale = _FLOAT16_SCALE if case.dtype == "float16" else 1.0
        self._random = torch.Generator(device).manual_seed(seed)
        self.span_ids = torch.zeros(case.rows, dtype=torch.int64, device=device)
        order = torch.randperm(case.rows, generator=self._random, device=device)
        self.supervised, self.unsupervised = order.tensor_split([case.supervised_rows])
        self.span_ids[self.supervised] = 1 + torch.arange(case.supervised_rows, device=device) % 2
        self.supervised, self.unsupervised = self.supervised.sort().values, self.unsupervised.sort().values
        if case.k:
            self._make_topk()
        self.leaves = self._make_leaves()

    def reset(self) -> None:
        """Drops the gradients and restores the leaves."""
        for leaf in self.leaves:
            leaf.grad = None

    def backward(self, loss: Tensor) -> None:
        """Runs the backward pass of the loss times `scale`."""
        loss.backward(None if self.scale == 1 else torch.full_like(loss, self.scale))

    @abstractmethod
    def reference(self) -> Reference:
        """Computes the loss and the sampled gradients in float64."""

    @abstractmethod
    def sampled_gradients(self) -> tuple[Tensor, ...]:
        """Returns the parts of the leaves' gradients that are compared with the reference."""

    def error(self, loss: Tensor, reference: Reference) -> float:
        """Returns the largest relative error of the loss and the gradients. NaN if anything is NaN.

        A gradient's error is relative to its largest entry. The gradient of every unsupervised row must be 0; any other
        value counts as an error.
        """
        errors = [abs(float(loss) / reference.loss - 1)]
        for got, exact in zip(self.sampled_gradients(), reference.gradients):
            errors.append(float((got.double() / self.scale - exact).abs().max() / exact.abs().max()))
        gradient, scale = self.leaves[0].grad, self.scale * float(reference.gradients[0].abs().max())
        for rows in self._chunks(self.unsupervised, gradient.shape[-1]):
            errors.append(float(gradient[rows].abs().max()) / scale)
        return float(torch.tensor(errors, dtype=torch.float64).max())

    @abstractmethod
    def _make_leaves(self) -> tuple[Tensor, ...]:
        """Makes the tensors that receive gradients, and the teacher's logits or hidden states."""

    def _make_topk(self) -> None:
        """Makes the k likeliest columns of a random teacher, a few rows at a time, without an (N, V) tensor."""
        shape = (self.case.rows, self.case.k)
        self.teacher_logprobs = torch.empty(shape, device=self.device)
        self.teacher_ids = torch.empty(shape, dtype=torch.int64, device=self.device)
        for rows in self._chunks(torch.arange(self.case.rows, device=self.device), self.case.vocab):
            logits = self._normal(len(rows), self.case.vocab, scale=3.0).float()
            self.teacher_logprobs[rows], self.teacher_ids[rows] = logits.log_softmax(-1).topk(self.case.k)

    def _loss_and_dlogits(self, rows: Tensor, log_q: Tensor) -> tuple[float, Tensor]:
        """Returns the summed loss of some rows and its gradient with respect to the student's logits, in float64.

        Args:
            rows: (n,) row indices.
            log_q: (n, V) float64, the student's log-probabilities of these rows.
        """
        q = log_q.exp()
        if not self.case.k:
            log_p = self._teacher_log_p(rows)
            return float((log_p.exp() * (log_p - log_q)).sum()), q - log_p.exp()
        ids, log_p = self.teacher_ids[rows], self.teacher_logprobs[rows].double()
        topk_log_q, p = log_q.gather(1, ids), log_p.exp()
        p_tail, q_tail = 1 - p.sum(-1), q.scatter(1, ids, 0.0).sum(-1)
        loss = (p * (log_p - topk_log_q)).sum() + (p_tail * (p_tail / q_tail).log()).sum()
        dlogits = q * (1 - p_tail / q_tail)[:, None]
        return float(loss), dlogits.scatter_(1, ids, topk_log_q.exp() - p)

    @abstractmethod
    def _teacher_log_p(self, rows: Tensor) -> Tensor:
        """Returns the teacher's log-probabilities (n, V) of some rows. Undefined if the case has `k`."""

    def _normal(self, *shape: int, scale: float) -> Tensor:
        """Draws in the case's dtype, because a float32 draw would triple the memory of a bfloat16 case."""
        x = torch.empty(shape, dtype=self.case.torch_dtype, device=self.device)
        return x.normal_(0, scale, generator=self._random)

    @staticmethod
    def _chunks(rows: Tensor, width: int) -> Iterator[Tensor]:
        yield from rows.split(max(1, _CHUNK // width)) if rows.numel() else ()

    def _evenly_spaced(self, rows: Tensor, count: int) -> Tensor:
        """Returns at most `count` of the rows, evenly spaced, including the first and the last."""
        picked = torch.linspace(0, len(rows) - 1, min(count, len(rows)), device=self.device, dtype=torch.float64)
        return rows[picked.round().long()]


class LogitsProblem(Problem):
    """A problem whose inputs are logits. The student's logits may be overwritten."""

    def reset(self) -> None:
        super().reset()
        if self.student._version != self._version:  # in-place work has overwritten the logits
            with torch.no_grad():
                self.student.copy_(self._original)
            self._version = self.student._version

    def reference(self) -> Reference:
        chunks = self._chunks(self.supervised, self.case.vocab)
        loss = sum(self._loss_and_dlogits(rows, self._log_q(rows))[0] for rows in chunks)
        dlogits = self._loss_and_dlogits(self._sampled, self._log_q(self._sampled))[1]
        return Reference(loss / len(self.supervised), (dlogits / len(self.supervised),))

    def sampled_gradients(self) -> tuple[Tensor, ...]:
        return (self.student.grad[self._sampled],)

    def _make_leaves(self) -> tuple[Tensor, ...]:
        self.student = self._normal(self.case.rows, self.case.vocab, scale=3.0)
        if not self.case.k:
            self.teacher = self._normal(self.case.rows, self.case.vocab, scale=3.0)
        self._original = self.student.clone()
        self._version = self.student._version
        self._sampled = self._evenly_spaced(self.supervised, _SAMPLED_ROWS)
        return (self.student.requires_grad_(),)

    def _log_q(self, rows: Tensor) -> Tensor:
        return self._original[rows].double().log_softmax(-1)

    def _teacher_log_p(self, rows: Tensor) -> Tensor:
        return self.teacher[rows].double().log_softmax(-1)


class LinearProblem(Problem):
    """A problem whose inputs are hidden states and language-model heads. The student's two tensors receive gradients."""

    def reference(self) -> Reference:
        count, loss = len(self.supervised), 0.0
        weight = self.student_weight.detach().double()
        d_hidden = torch.zeros(len(self._sampled), weight.shape[1], dtype=torch.float64, device=self.device)
        d_weight = torch.zeros(len(self._columns), weight.shape[1], dtype=torch.float64, device=self.device)
        for rows in self._chunks(self.supervised, self.case.vocab):
            hidden = self.student_hidden.detach()[rows].double()
            chunk_loss, dlogits = self._loss_and_dlogits(rows, (hidden @ weight.T).log_softmax(-1))
            loss += chunk_loss
            dlogits /= count
            d_weight += dlogits[:, self._columns].T @ hidden
            in_chunk, in_sample = (rows[:, None] == self._sampled[None]).nonzero(as_tuple=True)
            d_hidden[in_sample] = dlogits[in_chunk] @ weight
        return Reference(loss / count, (d_hidden, d_weight))

    def sampled_gradients(self) -> tuple[Tensor, ...]:
        return self.student_hidden.grad[self._sampled], self.student_weight.grad[self._columns]

    def _make_leaves(self) -> tuple[Tensor, ...]:
        rows, vocab, (student, teacher) = self.case.rows, self.case.vocab, self.case.hidden
        self.student_hidden = self._normal(rows, student, scale=1.0)
        self.student_weight = self._normal(vocab, student, scale=2.0 * student**-0.5)  # logits of standard deviation 2
        if not self.case.k:
            self.teacher_hidden = self._normal(rows, teacher, scale=1.0)
            self.teacher_weight = self._normal(vocab, teacher, scale=2.0 * teacher**-0.5)
        self._sampled = self._evenly_spaced(self.supervised, _SAMPLED_ROWS)
        self._columns = self._evenly_spaced(torch.arange(vocab, device=self.device), _SAMPLED_COLUMNS)
        return self.student_hidden.requires_grad_(), self.student_weight.requires_grad_()

    def _teacher_log_p(self, rows: Tensor) -> Tensor:
        return (self.teacher_hidden[rows].double() @ self.teacher_weight.double().T).log_softmax(-1)


def make_problem(case: Case, device: torch.device) -> Problem:
    """Makes the inputs of a case."""
    return (LogitsProblem if case.hidden is None else LinearProblem)(case, device)
