"""The tensors of a case and the truth about them in float64, written in PyTorch: nothing here is ours to get right."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels.bench.cases import Case

_CHUNK = 1 << 24  # elements of a float64 logits chunk: 128 MiB
_SAMPLED_ROWS, _SAMPLED_COLUMNS = 64, 256
_FLOAT16_SCALE = 1024.0  # as a gradient scaler multiplies; without it most gradients of a mean over rows underflow


class Truth(NamedTuple):
    """The mean loss of the supervised rows, and the gradients' parts that `sample` takes; float64."""

    loss: float
    parts: tuple[Tensor, ...]


class Problem(ABC):
    """Inputs of one case. `leaves` receive gradients; what they hold is spoilt by work in place until `reset`.

    From logits: `student` and `teacher` (N, V). From hidden states: `student_hidden` (N, H_s), `student_weight` (V, H_s),
    `teacher_hidden` (N, H_t), `teacher_weight` (V, H_t). Where the case is of listed columns, the teacher is
    `logprobs` (N, k) float32 and `listed_ids` (N, k) int64 instead. `ids` (N,) int64: 0 none, 1 reason, 2 act.
    """

    def __init__(self, case: Case, device: torch.device, seed: int = 0) -> None:
        self.case, self.device = case, device
        self.scale = _FLOAT16_SCALE if case.dtype == "float16" else 1.0
        self._random = torch.Generator(device).manual_seed(seed)
        self.ids = torch.zeros(case.rows, dtype=torch.int64, device=device)
        order = torch.randperm(case.rows, generator=self._random, device=device)
        self.supervised, self.unsupervised = order.tensor_split([case.supervised_rows])
        self.ids[self.supervised] = 1 + torch.arange(case.supervised_rows, device=device) % 2
        self.supervised, self.unsupervised = self.supervised.sort().values, self.unsupervised.sort().values
        if case.listed:
            self._make_lists()
        self.leaves = self._make()

    def reset(self) -> None:
        """Drops the gradients and restores the leaves."""
        for leaf in self.leaves:
            leaf.grad = None

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss times `scale`."""
        loss.backward(None if self.scale == 1 else torch.full_like(loss, self.scale))

    @abstractmethod
    def truth(self) -> Truth:
        """Loss and sampled gradients by PyTorch in float64."""

    @abstractmethod
    def sample(self) -> tuple[Tensor, ...]:
        """The parts of the leaves' gradients that are compared."""

    def error(self, loss: Tensor, truth: Truth) -> float:
        """The largest relative error of the loss and of each gradient, relative to that gradient's largest entry.

        Unsupervised rows, all of them, have a gradient of 0 and err by whatever else they hold. NaN if anything is NaN.
        """
        errors = [abs(float(loss) / truth.loss - 1)]
        for got, exact in zip(self.sample(), truth.parts):
            errors.append(float((got.double() / self.scale - exact).abs().max() / exact.abs().max()))
        gradient, scale = self.leaves[0].grad, self.scale * float(truth.parts[0].abs().max())
        for rows in self._chunks(self.unsupervised, gradient.shape[-1]):
            errors.append(float(gradient[rows].abs().max()) / scale)
        return float(torch.tensor(errors, dtype=torch.float64).max())

    @abstractmethod
    def _make(self) -> tuple[Tensor, ...]:
        """The leaves, whose gradients are asked for; the student's logits or hidden states first."""

    def _make_lists(self) -> None:
        """The likeliest columns of a teacher whose logits are drawn a few rows at a time and forgotten."""
        shape = (self.case.rows, self.case.listed)
        self.logprobs = torch.empty(shape, device=self.device)
        self.listed_ids = torch.empty(shape, dtype=torch.int64, device=self.device)
        for rows in self._chunks(torch.arange(self.case.rows, device=self.device), self.case.vocab):
            logits = self._normal(len(rows), self.case.vocab, scale=3.0).float()
            self.logprobs[rows], self.listed_ids[rows] = logits.log_softmax(-1).topk(self.case.listed)

    def _exact(self, rows: Tensor, log_q: Tensor) -> tuple[float, Tensor]:
        """Sum of the losses of some rows, whose log q (n, V) are given, and its gradient by their logits; float64."""
        q = log_q.exp()
        if not self.case.listed:
            log_p = self._log_p(rows)
            return float((log_p.exp() * (log_p - log_q)).sum()), q - log_p.exp()
        ids, log_p = self.listed_ids[rows], self.logprobs[rows].double()
        listed, p = log_q.gather(1, ids), log_p.exp()
        p_tail, q_tail = 1 - p.sum(-1), q.scatter(1, ids, 0.0).sum(-1)
        loss = (p * (log_p - listed)).sum() + (p_tail * (p_tail / q_tail).log()).sum()
        gradient = q * (1 - p_tail / q_tail)[:, None]
        return float(loss), gradient.scatter_(1, ids, listed.exp() - p)

    @abstractmethod
    def _log_p(self, rows: Tensor) -> Tensor:
        """(n, V), the teacher's, where the case is not of listed columns."""

    def _normal(self, *shape: int, scale: float) -> Tensor:
        """Drawn in the case's own dtype: a float32 draw would triple the memory of a bfloat16 case."""
        x = torch.empty(shape, dtype=self.case.torch_dtype, device=self.device)
        return x.normal_(0, scale, generator=self._random)

    @staticmethod
    def _chunks(rows: Tensor, width: int) -> Iterator[Tensor]:
        yield from rows.split(max(1, _CHUNK // width)) if rows.numel() else ()

    def _spread(self, rows: Tensor, count: int) -> Tensor:
        """At most `count` of the rows, evenly spaced, the first and the last among them."""
        picked = torch.linspace(0, len(rows) - 1, min(count, len(rows)), device=self.device, dtype=torch.float64)
        return rows[picked.round().long()]


class LogitsProblem(Problem):
    """Logits are given, and the student's may be overwritten."""

    def reset(self) -> None:
        super().reset()
        if self.student._version != self._version:  # somebody worked in place
            with torch.no_grad():
                self.student.copy_(self._original)
            self._version = self.student._version

    def truth(self) -> Truth:
        chunks = self._chunks(self.supervised, self.case.vocab)
        loss = sum(self._exact(rows, self._log_q(rows))[0] for rows in chunks)
        gradient = self._exact(self._sampled, self._log_q(self._sampled))[1]
        return Truth(loss / len(self.supervised), (gradient / len(self.supervised),))

    def sample(self) -> tuple[Tensor, ...]:
        return (self.student.grad[self._sampled],)

    def _make(self) -> tuple[Tensor, ...]:
        self.student = self._normal(self.case.rows, self.case.vocab, scale=3.0)
        if not self.case.listed:
            self.teacher = self._normal(self.case.rows, self.case.vocab, scale=3.0)
        self._original = self.student.clone()
        self._version = self.student._version
        self._sampled = self._spread(self.supervised, _SAMPLED_ROWS)
        return (self.student.requires_grad_(),)

    def _log_q(self, rows: Tensor) -> Tensor:
        return self._original[rows].double().log_softmax(-1)

    def _log_p(self, rows: Tensor) -> Tensor:
        return self.teacher[rows].double().log_softmax(-1)


class LinearProblem(Problem):
    """Hidden states and the two language-model heads are given; gradients go to the student's of both."""

    def truth(self) -> Truth:
        count, loss = len(self.supervised), 0.0
        weight = self.student_weight.detach().double()
        of_hidden = torch.zeros(len(self._sampled), weight.shape[1], dtype=torch.float64, device=self.device)
        of_weight = torch.zeros(len(self._columns), weight.shape[1], dtype=torch.float64, device=self.device)
        for rows in self._chunks(self.supervised, self.case.vocab):
            hidden = self.student_hidden.detach()[rows].double()
            of_chunk, gradient = self._exact(rows, (hidden @ weight.T).log_softmax(-1))
            loss += of_chunk
            gradient /= count
            of_weight += gradient[:, self._columns].T @ hidden
            own, place = (rows[:, None] == self._sampled[None]).nonzero(as_tuple=True)
            of_hidden[place] = gradient[own] @ weight
        return Truth(loss / count, (of_hidden, of_weight))

    def sample(self) -> tuple[Tensor, ...]:
        return self.student_hidden.grad[self._sampled], self.student_weight.grad[self._columns]

    def _make(self) -> tuple[Tensor, ...]:
        rows, vocab, (student, teacher) = self.case.rows, self.case.vocab, self.case.hidden
        self.student_hidden = self._normal(rows, student, scale=1.0)
        self.student_weight = self._normal(vocab, student, scale=2.0 * student**-0.5)  # logits of standard deviation 2
        if not self.case.listed:
            self.teacher_hidden = self._normal(rows, teacher, scale=1.0)
            self.teacher_weight = self._normal(vocab, teacher, scale=2.0 * teacher**-0.5)
        self._sampled = self._spread(self.supervised, _SAMPLED_ROWS)
        self._columns = self._spread(torch.arange(vocab, device=self.device), _SAMPLED_COLUMNS)
        return self.student_hidden.requires_grad_(), self.student_weight.requires_grad_()

    def _log_p(self, rows: Tensor) -> Tensor:
        return (self.teacher_hidden[rows].double() @ self.teacher_weight.double().T).log_softmax(-1)


def make(case: Case, device: torch.device) -> Problem:
    return (LogitsProblem if case.hidden is None else LinearProblem)(case, device)
