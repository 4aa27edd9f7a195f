"""The CUDA kernels for 16-bit logits: shorter arithmetic, excluded columns, running maxima."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sad
from tests.sadkernels.span_kl_cases import logits, run, truth

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
IDS = torch.tensor([1, 2, 1])
EACH_DTYPE = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
EACH_DIVERGENCE = pytest.mark.parametrize("divergence", DIVERGENCES)


def check(backend, student: Tensor, teacher: Tensor, relative: float = 1e-4, **options) -> None:
    """Compares loss and gradient per row with float64."""
    options["reduction"] = "none"
    loss, grad = run(student, teacher, IDS, backend, **options)
    exact, exact_grad = truth(student, teacher, IDS, **options)
    assert (loss >= 0).all()
    torch.testing.assert_close(loss.double(), exact, rtol=relative, atol=1e-12)
    finite = exact.isfinite()
    rounding = torch.finfo(student.dtype).eps
    torch.testing.assert_close(grad[finite].double(), exact_grad[finite], rtol=2 * rounding, atol=1e-6)


@EACH_DTYPE
@EACH_DIVERGENCE
@pytest.mark.parametrize("sides", ["both", "student", "teacher"])
def test_excluded_columns(emulated_backend, divergence, sides, dtype):
    """-inf in groups, in edge columns, and next to the finite columns of a group."""
    student, teacher = logits(3, 523, dtype), logits(3, 523, dtype)
    excluded = torch.rand(3, 523) < torch.tensor([[0.5], [0.02], [0.0]])
    excluded[:2, 520:] = True
    if sides != "teacher":
        student[excluded] = -torch.inf
    if sides != "student":
        teacher[excluded] = -torch.inf
    check(emulated_backend, student, teacher, divergence=divergence)


@EACH_DIVERGENCE
def test_a_column_that_underflows_for_one_side_and_is_excluded_by_the_other(emulated_backend, divergence):
    """A probability that is 0 in float32 does not make the divergence infinite."""
    student, teacher = logits(3, 200, torch.bfloat16), logits(3, 200, torch.bfloat16)
    student[:, 7], teacher[:, 7] = -torch.inf, -3.0e4
    student[:, 9], teacher[:, 9] = -3.0e4, -torch.inf
    loss, grad = run(student, teacher, IDS, emulated_backend, divergence=divergence)
    student[:, [7, 9]] = teacher[:, [7, 9]] = -torch.inf
    exact, exact_grad = truth(student, teacher, IDS, divergence=divergence)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=0)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=0.01, atol=1e-6)


@EACH_DTYPE
@EACH_DIVERGENCE
@pytest.mark.parametrize("moved", [1, 40])
def test_a_tiny_divergence(emulated_backend, divergence, moved, dtype):
    """The sides differ by one rounding in a few columns."""
    teacher = logits(3, 300, dtype)
    student = teacher.clone()
    student[:, :moved] = torch.nextafter(student[:, :moved].float(), torch.tensor(9.0)).to(dtype)
    student[:, :moved] += torch.finfo(dtype).eps * student[:, :moved].abs()
    check(emulated_backend, student, teacher, divergence=divergence)


@EACH_DIVERGENCE
def test_identical_sides(emulated_backend, divergence):
    both = logits(3, 300, torch.bfloat16)
    loss, grad = run(both, both, IDS, emulated_backend, divergence=divergence)
    assert loss == 0 and (grad == 0).all()


@pytest.mark.parametrize("beta", [1 / 64, 1 / 32, 0.3, 31 / 32, 0.99])
@pytest.mark.parametrize("distance", [0.05, 0.5, 5.0])
def test_jsd_weights(emulated_backend, beta, distance):
    """Weights on both sides of the bound of the short forms, and ratios on both sides of the border of the series."""
    teacher = logits(3, 300, torch.bfloat16)
    student = (teacher + distance * torch.randn(3, 300)).to(torch.bfloat16)
    check(emulated_backend, student, teacher, divergence="jsd", beta=beta)


@EACH_DIVERGENCE
def test_rising_logits(emulated_backend, divergence):
    """Every thread meets larger logits than before, so it raises the shift of its sums."""
    steps = torch.arange(1200).expand(3, -1)
    student, teacher = (steps * 0.25).to(torch.bfloat16), (steps * 0.125).to(torch.bfloat16)
    check(emulated_backend, student, teacher, divergence=divergence)


@EACH_DTYPE
def test_the_lowest_column_of_equal_maxima_counts(emulated_backend, dtype):
    """Many columns share the largest logit. A NaN counts as the largest, and -0 equals 0."""
    rows, vocab = 12, 1003
    student, teacher = torch.randint(-8, 1, (rows, vocab)).to(dtype), torch.randint(-8, 1, (rows, vocab)).to(dtype)
    student[student == 0] = 0.0 * torch.where(torch.rand(rows, vocab) < 0.5, -1.0, 1.0).to(dtype)[student == 0]
    teacher[torch.arange(rows), student.argmax(-1)] = 0.0
    student[1, 900] = student[2, 3] = teacher[3, 5] = torch.nan
    agree = student.argmax(-1) == teacher.argmax(-1)
    assert 0 < agree.sum() < rows
    for row in range(rows):
        _, stats = sad.fused_span_kl(
            student[row : row + 1], teacher[row : row + 1], torch.tensor([1]), return_stats=True, backend="cuda"
        )
        assert stats.reason.agreements == agree[row]


def test_a_row_of_weight_zero_has_no_gradient(emulated_backend):
    """Even if its logits are NaN."""
    student, teacher = logits(3, 300, torch.bfloat16), logits(3, 300, torch.bfloat16)
    student[1] = torch.nan
    for divergence in DIVERGENCES:
        options = {"divergence": divergence, "token_weights": torch.tensor([1.0, 0.0, 1.0])}
        _, grad = run(student, teacher, IDS, emulated_backend, **options)
        assert (grad[1] == 0).all() and (grad[0] != 0).any()
