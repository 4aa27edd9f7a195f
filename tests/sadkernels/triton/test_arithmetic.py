"""The arithmetic of one column and of a running total, away from memory."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl

from sadkernels.triton import softmax, span_kl

INF, NAN = math.inf, math.nan


@triton.jit
def _kl_kernel(p, q, r, out, N: tl.constexpr):
    lane = tl.arange(0, N)
    tl.store(out + lane, softmax.per_column_kl(tl.load(p + lane), tl.load(q + lane), tl.load(r + lane)))


def _per_column(p: torch.Tensor, q: torch.Tensor, r: torch.Tensor, device: torch.device) -> torch.Tensor:
    out = torch.empty(p.shape, device=device)
    _kl_kernel[(1,)](p.to(device), q.to(device), r.to(device), out, N=p.numel())
    return out.cpu()


def test_columns_have_their_digits_on_both_sides_of_the_branch(device):
    """r from 1e-6 to 4 and its negatives: the smallest terms are 5e-13 p, and none may lose its digits or turn negative."""
    magnitude = torch.logspace(-6, math.log10(4), 2048, dtype=torch.float64)
    r = torch.cat([magnitude, -magnitude]).float()
    p = torch.full_like(r, 0.3)
    q = (0.3 * r.double().exp()).float()
    exact = p.double() * (torch.expm1(r.double()) - r.double())
    small = r.abs() < 1e-3  # there even float64 loses digits in the difference: r^2 / 2 + r^3 / 6
    exact[small] = p[small].double() * r[small].double() ** 2 * (0.5 + r[small].double() / 6 + r[small].double() ** 2 / 24)
    got = _per_column(p, q, r, device)
    assert (got > 0).all()
    torch.testing.assert_close(got.double(), exact, rtol=2e-6, atol=0)


def test_columns_at_the_edges(device):
    cases = {  # (p, q, r): the term
        (0.0, 0.25, INF): 0.25,  # the teacher's logit is -inf, or its probability is denormal
        (0.0, 0.25, 90.0): 0.25,
        (0.0, 0.0, NAN): 0.0,  # both -inf
        (0.5, 0.0, -INF): INF,  # the student's is -inf
        (0.5, 0.0, -200.0): 0.5 * 200 - 0.5,  # the student's probability is denormal
        (NAN, 0.5, NAN): NAN,
        (0.5, NAN, NAN): NAN,
        (0.0, NAN, NAN): NAN,
    }
    p, q, r = (torch.tensor(column, dtype=torch.float32) for column in zip(*cases))
    torch.testing.assert_close(_per_column(p, q, r, device), torch.tensor(list(cases.values())), equal_nan=True)


@pytest.mark.parametrize("order", ["rising", "falling", "-inf first", "-inf last"])
def test_running_total_over_blocks(order, device):
    """Three blocks whose maxima move the shift up, not at all, or from and to nothing."""
    v = 3 * 512
    student = torch.linspace(-300, 300, v)[None]
    if order == "falling":
        student = student.flip(-1)
    elif order != "rising":
        student = torch.randn(1, v) * 5
        student[:, (slice(0, 600) if order == "-inf first" else slice(900, None))] = -INF
    teacher = student.clone()
    kinds = torch.ones(1, dtype=torch.uint8)
    options = {"vocab_size": v, "temperature": 1.0, "stats": True}
    kl, lse, extras = span_kl.forward(student.to(device), teacher.to(device), kinds.to(device), **options)
    exact = torch.logsumexp(student.double(), -1)
    p = (student.double() - exact[:, None]).exp()
    torch.testing.assert_close(lse.double().cpu(), exact.expand(2, 1), rtol=1e-6, atol=1e-6)
    entropy = torch.special.entr(p).sum(-1)
    torch.testing.assert_close(extras[:2].double().cpu(), entropy.expand(2, 1), rtol=2e-6, atol=1e-6)
    assert kl.item() == 0.0 and extras[2].item() == 1.0


def test_argmax_ties_go_to_the_lowest_column_across_blocks_and_edges(device):
    """Candidates in one thread's groups of two blocks, in another thread's, and in both edges of a row at an odd address."""
    v = 1100  # three blocks of 512 float32 columns, from one element past an aligned address
    ties = [(5, 517), (517, 518), (600, 1029), (0, 512), (513, 1098), (0, 1099)]
    memory = torch.randn(2 * len(ties) * v + 1)
    student, teacher = memory[1:].view(2, len(ties), v)
    for row, (low, high) in enumerate(ties):
        student[row, [low, high]] = 9.0
        teacher[row, low if row % 2 else high] = 9.0
    kinds = torch.ones(len(ties), dtype=torch.uint8)
    memory = memory.to(device)
    student, teacher = memory[1:].view(2, len(ties), v)
    _, _, extras = span_kl.forward(student, teacher, kinds.to(device), vocab_size=v, temperature=1.0, stats=True)
    assert extras[2].tolist() == [row % 2 for row in range(len(ties))]


@triton.jit
def _from_log_sum_exp_kernel(lse, shift, inverse, N: tl.constexpr):
    lane = tl.arange(0, N)
    s, i = softmax.from_log_sum_exp(tl.load(lse + lane))
    tl.store(shift + lane, s)
    tl.store(inverse + lane, i)


def test_a_stored_log_sum_exp_keeps_its_digits(device):
    """In powers of two 100 nats have 6e-6 of rounding in one float; 1 / total must be 20 times better than that."""
    lse = torch.linspace(-100, 100, 256)
    shift, inverse = torch.empty(256, device=device), torch.empty(256, device=device)
    _from_log_sum_exp_kernel[(1,)](lse.to(device), shift, inverse, N=256)
    nats = shift.double().cpu() * math.log(2) - inverse.double().cpu().log()
    torch.testing.assert_close(nats, lse.double(), rtol=0, atol=3e-7)
