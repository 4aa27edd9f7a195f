"""The passes for ordinary rows: their accuracy, and the rows that they leave to the passes for any value."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl

from sadkernels.divergence import DIVERGENCES, DivergenceConfig
from sadkernels.reference import span_kl as reference
from sadkernels.triton import divergences, span_kl
from tests.sadkernels.triton.row_helpers import absolute, assert_gradient

INF, NAN = math.inf, math.nan
V = 1024 + 533  # a whole block of the short tile, a partial block, and edges


@triton.jit
def _kl_kernel(p, r, d, out, N: tl.constexpr):
    lane = tl.arange(0, N)
    tl.store(out + lane, divergences.fast_kl_terms(tl.load(p + lane), tl.load(r + lane), tl.load(d + lane)))


def test_terms_are_accurate_on_both_sides_of_the_branch(device):
    """r runs from 1e-3 to 40, in both signs, over the branch at 0.25."""
    magnitude = torch.cat([torch.logspace(-3, math.log10(40), 992), torch.linspace(0.249, 0.251, 32)]).double()
    r = torch.cat([magnitude, -magnitude]).float().double()
    p = torch.full_like(r, 0.3)
    out = torch.empty(r.shape, device=device)
    columns = (x.float().to(device) for x in (p, r, p * torch.expm1(r)))
    _kl_kernel[(1,)](*columns, out, N=r.numel())
    exact = p * (torch.expm1(r) - r)
    torch.testing.assert_close(out.cpu().double(), exact, rtol=3e-5, atol=0)


def _unusual_rows(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns logits of student and teacher (rows, V): an unusual value in each row, most of them in one column."""
    student, teacher = 3 * torch.randn(2, 14, V)
    whole, partial, edge = 700, 300, V - 1  # columns
    teacher[1] = student[1]
    student[2, whole], teacher[2, whole] = -INF, -INF
    student[3, partial], teacher[3, partial] = -INF, -INF
    student[4, edge], teacher[4, edge] = -INF, -INF
    student[5, whole] = -INF
    teacher[6, whole] = -INF
    student[7, partial] = NAN
    teacher[8, whole] = NAN
    student[9] += 1000
    teacher[9] -= 2000
    student[10, whole], teacher[10, whole] = -60000, -60000  # exponents below the bound
    student[11, whole], student[11, partial] = 60000, -60000
    student[12] *= 1e-3  # rows near the uniform distribution
    teacher[12] *= 1e-3
    student[13] = -INF
    return student.to(dtype), teacher.to(dtype)


@pytest.mark.parametrize(
    ("dtype", "divergence"), [(torch.bfloat16, "forward_kl"), (torch.float16, "reverse_kl"), (torch.bfloat16, "jsd")]
)
def test_unusual_rows(dtype, divergence, device):
    torch.manual_seed(0)
    student, teacher = _unusual_rows(dtype)
    n = len(student)
    kinds, weights = torch.ones(n, dtype=torch.uint8), torch.linspace(0.5, 1, n)
    weights[1] = 0
    config = DivergenceConfig(V, divergence=divergence, temperature=1.5)
    grad, exact_grad = torch.full((n, V), 7.0, dtype=dtype, device=device), torch.empty(n, V, dtype=torch.float64)
    inputs = [x.to(device) for x in (student, teacher, kinds, weights)]
    got = span_kl.forward_backward(*inputs, config, stats=True, grad=grad)
    exact_inputs = (student.double(), teacher.double(), kinds, weights.double())
    exact = reference.forward_backward(*exact_inputs, config, stats=True, grad=exact_grad)
    torch.testing.assert_close(got.value.double().cpu(), exact.value, rtol=1e-4, atol=1e-9, equal_nan=True)
    assert not (got.value < 0).any()
    assert got.value[1] == 0
    torch.testing.assert_close(got.entropies.double().cpu(), exact.entropies, rtol=2e-6, atol=2e-6, equal_nan=True)
    assert torch.equal(got.argmax.long().cpu(), exact.argmax)
    finite = exact_grad.isfinite().all(-1)
    assert_gradient(grad[finite], exact_grad[finite])
    assert torch.equal(grad.isnan().cpu(), exact_grad.isnan())
    assert (grad[1] == 0).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_small_divergences_keep_four_digits(divergence, device):
    """Some logits of the teacher differ by one unit in the last place, or one likely logit, or all differ a little."""
    torch.manual_seed(0)
    student = (2 * torch.randn(3, V)).bfloat16()
    teacher = student.clone()
    teacher[0, ::300] *= 1 + 2**-7
    teacher[1, student[1].argmax()] *= 1 + 2**-7
    teacher[2] += 0.01 * torch.randn(V)
    kinds, config = torch.ones(3, dtype=torch.uint8), DivergenceConfig(V, divergence=divergence)
    got = span_kl.forward(student.to(device), teacher.to(device), kinds.to(device), config, stats=True)
    exact = reference.forward(student.double(), teacher.double(), kinds, config, stats=False)
    torch.testing.assert_close(got.value.double().cpu(), exact.value, rtol=1e-4, atol=0)
    torch.testing.assert_close(absolute(got.state, config), absolute(exact.state, config), rtol=2e-6, atol=1e-6)


def test_the_lowest_column_is_the_argmax_in_every_part_of_a_row(device):
    """Ties within a group, between the partial block, whole blocks and both edges, and between threads."""
    v = 3 * 1024 + 30
    ties = [(8, 9), (5, 1030), (40, 1064), (1064, 2088), (0, 700), (20, v - 1), (2000, 2001), (3, 3070), (v - 2, v - 1)]
    memory = torch.randn(2 * len(ties) * v + 3).bfloat16()
    rows = memory[3:].view(2, len(ties), v)
    for row, columns in enumerate(ties):
        rows[:, row, columns] = 9.0
    memory = memory.to(device)
    student, teacher = memory[3:].view(2, len(ties), v)
    kinds = torch.ones(len(ties), dtype=torch.uint8)
    argmax = span_kl.forward(student, teacher, kinds.to(device), DivergenceConfig(v), stats=True).argmax
    assert argmax.tolist() == [[low for low, _ in ties]] * 2
