"""The arithmetic per column and of running totals."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl

from sadkernels.divergence import DivergenceConfig
from sadkernels.triton import divergences, launch, softmax, span_kl

INF, NAN = math.inf, math.nan


@triton.jit
def _kl_kernel(p, q, r, out, N: tl.constexpr):
    lane = tl.arange(0, N)
    tl.store(out + lane, divergences.kl_terms(tl.load(p + lane), tl.load(q + lane), tl.load(r + lane)))


def _per_column(p: torch.Tensor, q: torch.Tensor, r: torch.Tensor, device: torch.device) -> torch.Tensor:
    out = torch.empty(p.shape, device=device)
    _kl_kernel[(1,)](p.to(device), q.to(device), r.to(device), out, N=p.numel())
    return out.cpu()


def test_kl_terms_are_accurate_on_both_sides_of_the_branch(device):
    """r runs from 1e-6 to 4, in both signs. The smallest terms are 5e-13 p; no term may lose digits or become negative."""
    magnitude = torch.logspace(-6, math.log10(4), 2048, dtype=torch.float64)
    r = torch.cat([magnitude, -magnitude]).float()
    p = torch.full_like(r, 0.3)
    q = (0.3 * r.double().exp()).float()
    exact = p.double() * (torch.expm1(r.double()) - r.double())
    small = r.abs() < 1e-3  # the difference loses digits even in float64, so use the series
    exact[small] = p[small].double() * r[small].double() ** 2 * (0.5 + r[small].double() / 6 + r[small].double() ** 2 / 24)
    got = _per_column(p, q, r, device)
    assert (got > 0).all()
    torch.testing.assert_close(got.double(), exact, rtol=2e-6, atol=0)


def test_kl_terms_of_zero_infinite_and_nan_columns(device):
    cases = {  # (p, q, r): term
        (0.0, 0.25, INF): 0.25,  # teacher's logit -inf, or its probability denormal
        (0.0, 0.25, 90.0): 0.25,
        (0.0, 0.0, NAN): 0.0,  # both logits -inf
        (0.5, 0.0, -INF): INF,  # student's logit -inf
        (0.5, 0.0, -200.0): 0.5 * 200 - 0.5,  # student's probability denormal
        (NAN, 0.5, NAN): NAN,
        (0.5, NAN, NAN): NAN,
        (0.0, NAN, NAN): NAN,
    }
    p, q, r = (torch.tensor(column, dtype=torch.float32) for column in zip(*cases))
    torch.testing.assert_close(_per_column(p, q, r, device), torch.tensor(list(cases.values())), equal_nan=True)


@triton.jit
def _divergence_kernel(
    p,
    q,
    r,
    terms,
    gradient,
    mean_dlogp,
    teacher_share,
    student_share,
    mixture_border,
    DIVERGENCE: tl.constexpr,
    N: tl.constexpr,
):
    lane = tl.arange(0, N)
    p, q, r = tl.load(p + lane), tl.load(q + lane), tl.load(r + lane)
    mixture = divergences.Mixture(teacher_share, student_share, mixture_border)
    term, mean_dlogp_term = divergences.divergence_terms(q, p, r, mixture, DIVERGENCE)
    tl.store(terms + lane, term)
    tl.store(terms + N + lane, mean_dlogp_term)
    tl.store(gradient + lane, divergences.divergence_gradient(q, p, r, mean_dlogp, mixture, DIVERGENCE))


def _divergence(p, q, r, divergence: str, beta: float, mean_dlogp: float, device) -> tuple[torch.Tensor, torch.Tensor]:
    terms, gradient = torch.empty(2, p.numel(), device=device), torch.empty(p.numel(), device=device)
    columns = (x.to(device) for x in (p, q, r))
    mixture = launch.mixture_arguments(beta)
    _divergence_kernel[(1,)](*columns, terms, gradient, mean_dlogp, **mixture, DIVERGENCE=divergence, N=p.numel())
    return terms.cpu(), gradient.cpu()


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.97])
def test_jsd_terms_and_gradient(beta, device):
    """r runs from 0.01 to 80, in both signs: from nearly equal probabilities to one that is 0."""
    magnitude = torch.logspace(-2, math.log10(80), 512, dtype=torch.float64)
    r = torch.cat([magnitude, -magnitude])
    larger, smaller = torch.full_like(r, 0.3), 0.3 * (-r.abs()).exp()
    p, q = (torch.where(r < 0, larger, smaller).float().double(), torch.where(r < 0, smaller, larger).float().double())
    r = torch.where((p > 0) & (q > 0), q.log() - p.log(), r)
    m = beta * p + (1 - beta) * q
    by_teacher, by_student = (torch.where(a == 0, m, m - a - a * (m / a).log()) for a in (p, q))
    exact = torch.stack([beta * by_teacher + (1 - beta) * by_student, (1 - beta) * by_student])
    terms, gradient = _divergence(p.float(), q.float(), r.float(), "jsd", beta, 0.01, device)
    assert (terms >= 0).all()
    # NVIDIA's lg2.approx has an error of at most 2^-22, which is 4e-4 of the smallest terms at beta 0.1
    torch.testing.assert_close(terms.double(), exact, rtol=6e-4, atol=1e-11)
    exact_gradient = torch.where(q == 0, 0, q * (-(1 - beta) * (m / q).log() - 0.01))
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("divergence", ["reverse_kl", "jsd"])
def test_divergences_of_zero_infinite_and_nan_columns(divergence, device):
    beta = 0.25
    jsd = divergence == "jsd"
    cases = {  # (p, q, r): (term, gradient for E_q[dlogp] = 0)
        (0.0, 0.0, NAN): (0.0, 0.0),  # both logits -inf
        (0.5, 0.0, -INF): (0.5 * beta * -math.log(beta), 0.0) if jsd else (0.5, 0.0),  # student's logit -inf
        (0.0, 0.5, INF): (0.5 * 0.75 * -math.log(0.75), 0.5 * 0.75 * math.log(4 / 3)) if jsd else (INF, INF),
        (0.5, 0.5, 0.0): (0.0, 0.0),
        (NAN, 0.5, NAN): (NAN, NAN),
        (0.5, NAN, NAN): (NAN, NAN),
        (0.0, NAN, NAN): (NAN, NAN),
        (NAN, 0.0, NAN): (NAN, 0.0),
    }
    p, q, r = (torch.tensor(column, dtype=torch.float32) for column in zip(*cases))
    terms, gradient = _divergence(p, q, r, divergence, beta, 0.0, device)
    expected = torch.tensor(list(cases.values())).T
    if jsd:  # m - p of the term m - p - p log(m / p) cancels in the sum over all columns, but not per column
        expected[0, 1] += beta * (beta - 1) * 0.5 + (1 - beta) * beta * 0.5
        expected[0, 2] += beta * 0.75 * 0.5 + 0.75 * (0.75 - 1) * 0.5
    torch.testing.assert_close(torch.stack([terms[0], gradient]), expected, equal_nan=True)


@triton.jit
def _tanh_kernel(u, out, N: tl.constexpr):
    lane = tl.arange(0, N)
    tl.store(out + lane, softmax.tanh(tl.load(u + lane)))


def test_tanh_is_accurate_near_0_and_saturates(device):
    """u runs from 1e-30 to 100, across the branch at 0.625. Infinities and NaN match PyTorch."""
    magnitude = torch.cat(
        [torch.logspace(-30, 2, 1000), torch.linspace(0.6, 0.65, 20), torch.tensor([INF, 0.0, NAN, 5e-45])]
    )
    u = torch.cat([magnitude, -magnitude])
    out = torch.empty(u.shape, device=device)
    _tanh_kernel[(1,)](u.to(device), out, N=u.numel())
    torch.testing.assert_close(out.cpu().double(), u.double().tanh(), rtol=3e-7, atol=1e-44, equal_nan=True)


def test_soft_cap_of_infinite_and_huge_logits(device):
    """A logit of -inf becomes -cap: the column has a probability and a slope of 0, and is never the argmax."""
    s = torch.tensor([[-INF, -INF, 1e30, 2.0, 1e-6]])
    t = torch.tensor([[0.0, -INF, 3.0, INF, -1e-6]])
    kinds, weights = torch.ones(1, dtype=torch.uint8), torch.ones(1)
    config = DivergenceConfig(5, student_softcap=3.0, teacher_softcap=4.0)
    z_s, z_t = 3 * torch.tanh(s.double() / 3), 4 * torch.tanh(t.double() / 4)
    p, q = z_t.softmax(-1), z_s.softmax(-1)
    grad = torch.empty_like(s, device=device)
    tensors = (s.to(device), t.to(device), kinds.to(device), weights.to(device))
    values = span_kl.forward_backward(*tensors, config, stats=True, grad=grad)
    torch.testing.assert_close(values.value.double().cpu(), (p * (p / q).log()).sum(-1), rtol=2e-6, atol=0)
    torch.testing.assert_close(grad.double().cpu(), (q - p) * (1 - torch.tanh(s.double() / 3) ** 2), rtol=1e-5, atol=1e-7)
    assert values.argmax.tolist() == [[2], [3]]


@pytest.mark.parametrize("order", ["rising", "falling", "-inf first", "-inf last"])
def test_running_total_over_blocks(order, device):
    """The maxima of three blocks move the shift up, leave it, or move it from and to -inf."""
    v = 3 * 512
    student = torch.linspace(-300, 300, v)[None]
    if order == "falling":
        student = student.flip(-1)
    elif order != "rising":
        student = torch.randn(1, v) * 5
        student[:, (slice(0, 600) if order == "-inf first" else slice(900, None))] = -INF
    teacher = student.clone()
    kinds = torch.ones(1, dtype=torch.uint8)
    values = span_kl.forward(student.to(device), teacher.to(device), kinds.to(device), DivergenceConfig(v), stats=True)
    exact = torch.logsumexp(student.double(), -1)
    p = (student.double() - exact[:, None]).exp()
    log_sums = values.state[:2].double().cpu() + values.state[3:].double().cpu()
    torch.testing.assert_close(log_sums, exact.expand(2, 1), rtol=1e-6, atol=1e-6)
    entropy = torch.special.entr(p).sum(-1)
    torch.testing.assert_close(values.entropies.double().cpu(), entropy.expand(2, 1), rtol=2e-6, atol=1e-6)
    assert values.value.item() == 0.0 and (values.argmax == student.argmax()).all()


def test_argmax_ties_go_to_the_lowest_column_across_blocks_and_edges(device):
    """The ties lie in one thread's groups of two blocks, in two threads, and in both edges of a row at an odd address."""
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
    argmax = span_kl.forward(student, teacher, kinds.to(device), DivergenceConfig(v), stats=True).argmax
    assert argmax[0].tolist() == [low for low, _ in ties]
    assert argmax[1].tolist() == [low if row % 2 else high for row, (low, high) in enumerate(ties)]


@triton.jit
def _log_sum_kernel(log_sums, origins, log2_sums, N: tl.constexpr):
    lane = tl.arange(0, N)
    tl.store(log2_sums + lane, softmax.load_log_sum(log_sums, origins, lane).log2_sum)


def test_a_stored_log_sum_keeps_its_digits(device):
    """The product with log2(e) is rounded once; log2(e) as one float has an error of 2e-8 of its own."""
    log_sums = torch.linspace(-12, 12, 256)
    log2_sums = torch.empty(256, device=device)
    _log_sum_kernel[(1,)](log_sums.to(device), log_sums.to(device), log2_sums, N=256)
    torch.testing.assert_close(log2_sums.cpu(), (log_sums.double() / math.log(2)).float(), rtol=0, atol=0)
