"""Gradients of the losses from 16-bit hidden states, against float64 on the same operands."""

from __future__ import annotations

import math

import pytest
import torch

import sad
from sadkernels.ops import head, products

TOLERANCE = {torch.bfloat16: 6e-3, torch.float16: 1e-3}  # of the gradient's norm; rounding alone is 2e-3 and 2e-4
UPSTREAM = {torch.bfloat16: 1.0, torch.float16: 2.0**16}  # float16 trains with a loss scale
N, H, V = 48, 64, 4000


def problem(dtype, distance, peak=1.0):
    """A student at this distance from its teacher: hidden states, weight, teacher's hidden states and weight."""
    hidden, weight = torch.randn(N, H), torch.randn(V, H) * peak / H**0.5
    teacher = hidden + distance * torch.randn(N, H), weight + distance * torch.randn(V, H) / H**0.5
    return [x.to(dtype) for x in (hidden, weight, *teacher)]


def relative(x, exact):
    return float((x.double() - exact).norm() / exact.norm())


def errors(operands, backend="cpu", upstream=1.0, **options):
    """Relative errors of the gradients of hidden states and weight."""
    ids = torch.arange(N) % 2 + 1
    exact = [x.double().requires_grad_() for x in operands[:2]]
    teacher_logits = operands[2].double() @ operands[3].double().T
    logits_options = {name: x for name, x in options.items() if name != "chunk_bytes"}
    sad.fused_span_kl(exact[0] @ exact[1].T, teacher_logits, ids, backend="reference", **logits_options).backward()
    leaves = [x.clone().requires_grad_() for x in operands[:2]]
    loss = sad.fused_linear_span_kl(*leaves, *operands[2:], ids, backend=backend, **options)
    (loss * upstream).backward()
    assert all(x.grad.isfinite().all() for x in leaves)
    return [relative(x.grad.double() / upstream, e.grad) for x, e in zip(leaves, exact)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("distance", "peak"), [(0.05, 1.0), (0.15, 1.0), (0.05, 3.0)])
def test_close_student_and_teacher(backend, dtype, distance, peak):
    """With logits rounded to 16 bits the errors are 1 to 20 %."""
    if backend.name in ("triton", "cuda") and backend.device.type == "cpu":
        pytest.skip("interpreted and emulated kernels take minutes at this size; the projection is the same")
    found = errors(problem(dtype, distance, peak), backend.name, UPSTREAM[dtype], chunk_bytes=11 * V * 10)
    assert max(found) < TOLERANCE[dtype], found


@pytest.mark.parametrize("has_products", [True, False])
def test_both_products_of_a_cpu(monkeypatch, has_products):
    monkeypatch.setattr(products, "has_bfloat16_products", lambda: has_products)
    assert max(errors(problem(torch.bfloat16, 0.05, 3.0))) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_the_rounding_error_of_a_bfloat16_product_is_added_back(monkeypatch, rows):
    monkeypatch.setattr(products, "has_bfloat16_products", lambda: True)
    hidden, weight, bias = (torch.randn(size).bfloat16() for size in ((rows, 200), (700, 200), (700,)))
    logits = torch.empty(rows, 700)
    head.Head(hidden, weight, bias).project(hidden, logits)
    exact = hidden.double() @ weight.double().T + bias.double()
    assert (logits.double() - exact).abs().max() < 2e-5 * exact.abs().max()


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.05}, {"logit_scale": 100.0}, {"divergence": "reverse_kl"}, {"reduction": "sum"}],
    ids=["low temperature", "logit scale", "reverse KL", "sum"],
)
def test_large_float16_gradients_do_not_overflow(options):
    """Gradients that float32 holds are finite before the loss scale, whatever the options multiply them by."""
    found = errors(problem(torch.float16, 0.15), **options)
    assert max(found) < 2e-3, found


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_do_not_count_carry_no_nan_into_the_head(dtype, reduction):
    """An unsupervised row that `rows` names, and a row of lambda 0 that is read for statistics."""
    hidden, weight, *teacher = problem(dtype, 0.1)
    ids = torch.tensor([1, 2, 0, 2] * (N // 4))
    hidden[2] = torch.nan
    expected = None
    for rows in (ids.nonzero().squeeze(-1), torch.arange(N)):
        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = sad.fused_linear_span_kl(*leaves, *teacher, ids, rows=rows, reduction=reduction)
        loss.sum().backward()
        assert all(x.grad.isfinite().all() for x in leaves)
        expected = leaves[1].grad if expected is None else expected
        torch.testing.assert_close(leaves[1].grad, expected, rtol=1e-2, atol=1e-4)
    hidden[0] = torch.nan  # a reason row
    leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss, _ = sad.fused_linear_span_kl(*leaves, *teacher, ids, lambda_reason=0.0, return_stats=True)
    loss.backward()
    assert loss.isfinite() and all(x.grad.isfinite().all() for x in leaves)


def test_the_upstream_gradient_is_not_rounded_to_16_bits():
    operands, upstream = problem(torch.bfloat16, 0.1), 3.1  # bfloat16 rounds it to 3.094, 0.2 % less
    ids, grads = torch.ones(N, dtype=torch.long), []
    for factor in (1.0, upstream):
        weight = operands[1].clone().requires_grad_()
        (sad.fused_linear_span_kl(operands[0], weight, *operands[2:], ids) * factor).backward()
        grads.append(weight.grad.double())
    largest = grads[0].abs() > grads[0].abs().max() / 4
    ratio = (grads[1][largest] / grads[0][largest]).mean()
    assert abs(float(ratio) / upstream - 1) < 5e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("hidden", [4, 5])
def test_a_row_that_is_not_read_does_not_reach_its_neighbors(dtype, hidden):
    """`rows` may name rows without a span, whose hidden states may be NaN."""
    student, teacher = (torch.randn(45, hidden).to(dtype) for _ in range(2))
    weights = [torch.randn(100, hidden).to(dtype) for _ in range(2)]
    ids = torch.arange(45) % 3
    student[ids == 0], teacher[ids == 0] = math.nan, math.nan
    backend = "reference" if dtype == torch.float64 else "cpu"
    for leaf in (student, weights[0]):
        leaf.requires_grad_()
    options = {"rows": torch.randperm(45), "backend": backend}
    loss = sad.fused_linear_span_kl(student, weights[0], teacher, weights[1], ids, **options)
    loss.backward()
    assert loss.isfinite() and all(x.grad.isfinite().all() for x in (student, weights[0]))
