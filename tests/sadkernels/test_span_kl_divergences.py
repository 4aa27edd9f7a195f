"""Reverse KL and JSD, and scaled and capped logits, on every backend."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import sad
from tests.sadkernels.span_kl_cases import assert_close_to_truth, logits, run, truth

IDS = torch.tensor([0, 1, 2, 1, 0, 2, 2, -100])
REVERSE = {"divergence": "reverse_kl"}
JSD = {"divergence": "jsd", "beta": 0.3}
OPERAND = 10.0  # see `assert_close_to_truth`
OTHERS = pytest.mark.parametrize("divergence", [REVERSE, JSD], ids=lambda o: o["divergence"])
TRANSFORMS = {
    "scale": {"logit_scale": 0.4},
    "softcap": {"logit_softcap": 5.0},
    "softcap of the student, scale per side": {"logit_softcap": (4.0, None), "logit_scale": (1.5, 0.5)},
    "softcap of the teacher": {"logit_softcap": (None, 6.0)},
}


def _pytorch(student, teacher, divergence, beta=0.5):
    """Returns (N,) divergences from PyTorch functions, in float64."""
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    if divergence == "reverse_kl":
        return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
    log_m = torch.logsumexp(torch.stack([log_p + math.log(beta), log_q + math.log(1 - beta)]), dim=0)
    of_teacher = F.kl_div(log_m, log_p, reduction="none", log_target=True).sum(-1)
    return beta * of_teacher + (1 - beta) * F.kl_div(log_m, log_q, reduction="none", log_target=True).sum(-1)


@OTHERS
@pytest.mark.parametrize("transform", [{}, *TRANSFORMS.values()], ids=["plain", *TRANSFORMS])
def test_reference_in_float64_equals_pytorch(divergence, transform):
    student, teacher = logits(8, 300, torch.float64), logits(8, 300, torch.float64)
    scales, caps = (v if isinstance(v, tuple) else (v, v) for v in map(transform.get, ("logit_scale", "logit_softcap")))
    leaf = student.clone().requires_grad_()
    sides = []
    for x, scale, cap in zip((leaf, teacher), scales, caps):
        x = x * (scale or 1.0)
        sides.append((cap * torch.tanh(x / cap) if cap else x) / 1.4)
    per_token = _pytorch(*sides, **divergence)
    loss = 0.3 * per_token[IDS == 1].sum() + 2.0 * per_token[IDS == 2].sum()
    loss.backward()
    options = {"lambda_reason": 0.3, "lambda_act": 2.0, "reduction": "sum", "temperature": 1.4, **divergence, **transform}
    ours, grad = truth(student, teacher, IDS, **options)
    torch.testing.assert_close(ours, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, leaf.grad, rtol=1e-9, atol=1e-14)


@OTHERS
@pytest.mark.parametrize("vocab", [1, 7, 257, 2049, 5003], ids=lambda v: f"V{v}")
def test_sizes(backend, divergence, vocab):
    student, teacher = logits(8, vocab), logits(8, vocab)
    options = {"temperature": 1.5, "upstream": -0.4, **divergence}
    got = run(student, teacher, IDS, backend, **options)
    assert_close_to_truth(got, truth(student, teacher, IDS, **options), torch.float32, OPERAND)


@OTHERS
@pytest.mark.parametrize(
    "dtypes",
    [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32), (torch.float32, torch.bfloat16)],
    ids=str,
)
def test_dtypes(backend, divergence, dtypes):
    student, teacher = logits(8, 517, dtypes[0]), logits(8, 517, dtypes[1])
    got = run(student, teacher, IDS, backend, **divergence)
    assert_close_to_truth(got, truth(student, teacher, IDS, **divergence), dtypes[0], OPERAND)


@pytest.mark.parametrize("divergence", [{}, REVERSE, JSD], ids=lambda o: o.get("divergence", "forward_kl"))
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_scale_and_softcap(backend, divergence, transform, reduction):
    student, teacher = logits(8, 515), logits(8, 515)
    options = {"reduction": reduction, "temperature": 0.8, **divergence, **transform}
    got = run(student, teacher, IDS, backend, **options)
    assert_close_to_truth(got, truth(student, teacher, IDS, **options), torch.float32, OPERAND)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_softcap_of_narrow_dtypes_in_place(backend, dtype):
    student, teacher = logits(8, 301, dtype), logits(8, 301, dtype)
    options = {"logit_softcap": 5.0, "inplace_backward": True}
    exact = truth(student, teacher, IDS, logit_softcap=5.0)
    assert_close_to_truth(run(student.clone(), teacher, IDS, backend, **options), exact, dtype)


@OTHERS
def test_in_place_gives_the_same_bits(backend, divergence):
    student, teacher = logits(8, 203), logits(8, 203)
    apart = run(student, teacher, IDS, backend, **divergence)
    in_place = run(student.clone(), teacher, IDS, backend, inplace_backward=True, **divergence)
    assert torch.equal(apart[0], in_place[0]) and torch.equal(apart[1], in_place[1])


@OTHERS
def test_non_negative_and_exact_near_convergence(backend, divergence):
    student = logits(8, 4099, scale=2.0)
    teacher = student + 1e-3 * torch.randn_like(student)
    value, _ = run(student, teacher, IDS, backend, reduction="none", **divergence)
    exact, _ = truth(student, teacher, IDS, reduction="none", **divergence)
    assert (value >= 0).all() and (value.double() - exact).abs().max() < 2e-9 and exact.max() > 1e-8
    same, grad = run(student, student, IDS, backend, **divergence)
    assert same < 1e-13 and grad.abs().max() < 1e-7


@OTHERS
def test_infinite_logits(backend, divergence):
    """reverse_kl is infinite if only the teacher's logit is -inf; jsd and its gradient are always finite."""
    inf = math.inf
    student, teacher = logits(8, 100), logits(8, 100)
    student[1, :50] = -inf
    teacher[2, 3] = -inf
    student[3, :20] = teacher[3, :20] = -inf
    options = {"reduction": "none", **divergence}
    value, grad = run(student, teacher, IDS, backend, **options)
    exact_value, exact_grad = truth(student, teacher, IDS, **options)
    finite = [1, 3, 5, 6] + ([2] if divergence is JSD else [])
    assert value[finite].isfinite().all() and grad[finite].isfinite().all()
    assert (value[2] == inf) == (divergence is REVERSE) and (grad[3, :20] == 0).all()
    torch.testing.assert_close(value.double(), exact_value, rtol=2e-6, atol=0)
    torch.testing.assert_close(grad[finite].double(), exact_grad[finite], rtol=1e-5, atol=1e-6 * OPERAND)


@OTHERS
def test_far_apart(backend, divergence):
    """Probabilities underflow on each side: reverse_kl is 95, jsd its upper bound H(beta)."""
    student, teacher = torch.tensor([[0.0, 100.0]]), torch.tensor([[95.0, 0.0]])
    value, grad = run(student, teacher, torch.tensor([1]), backend, **divergence)
    expected = 95.0 if divergence is REVERSE else -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    assert value == pytest.approx(expected, rel=1e-6) and grad.isfinite().all()


@OTHERS
@pytest.mark.parametrize("poison", ["nan in student", "nan in teacher", "all -inf"])
def test_nan_in_nan_out(backend, divergence, poison):
    student, teacher = logits(8, 100), logits(8, 100)
    if poison == "all -inf":
        student[1] = -math.inf
    else:
        (student if "student" in poison else teacher)[1, 42] = math.nan
    value, _ = run(student, teacher, IDS, backend, reduction="none", **divergence)
    assert value[1].isnan() and value[[0, 2, 3, 4, 5, 6, 7]].isfinite().all()


def test_softcap_makes_infinite_logits_finite(backend):
    """tanh(-inf) = -1, so a masked column becomes -cap on both sides, as in PyTorch."""
    student, teacher = logits(8, 100), logits(8, 100)
    student[1, 3] = teacher[2, 5] = -math.inf
    options = {"logit_softcap": 3.0, "reduction": "none"}
    got, exact = run(student, teacher, IDS, backend, **options), truth(student, teacher, IDS, **options)
    assert got[0].isfinite().all() and got[1].isfinite().all()
    torch.testing.assert_close(got[0].double(), exact[0], rtol=2e-6, atol=0)


@pytest.mark.parametrize("divergence", [REVERSE, JSD], ids=lambda o: o["divergence"])
def test_finite_differences(backend, divergence):
    student, teacher, direction = logits(8, 40), logits(8, 40), torch.randn(8, 40)
    options = {"temperature": 2.0, "lambda_act": 0.4, "logit_softcap": (9.0, None), **divergence}
    _, grad = run(student, teacher, IDS, backend, upstream=5.0, **options)
    step = 1e-2
    above, below = (run(student + s * direction, teacher, IDS, backend, **options)[0].double() for s in (step, -step))
    assert (5.0 * (above - below) / (2 * step)).item() == pytest.approx((grad * direction).sum().item(), rel=2e-3)


@OTHERS
def test_gradcheck_of_the_reference(divergence):
    teacher = logits(8, 12, torch.float64)
    options = {"temperature": 1.9, "logit_softcap": (7.0, 5.0), "logit_scale": 0.7, **divergence}
    student = logits(8, 12, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: sad.fused_span_kl(s, teacher, IDS, **options), student)


@OTHERS
def test_stats(backend, divergence):
    """`kl_sum` is the sum of the chosen divergence; entropies and agreements do not depend on it."""
    student, teacher = logits(8, 515), logits(8, 515)
    on_device = [x.to(backend.device) for x in (student, teacher, IDS)]
    options = {"return_stats": True, "logit_softcap": 9.0, "backend": backend.name}
    _, stats = sad.fused_span_kl(*on_device, **options, **divergence)
    _, usual = sad.fused_span_kl(*on_device, **options)
    values, _ = truth(student, teacher, IDS, reduction="none", logit_softcap=9.0, **divergence)
    assert stats.act.kl_sum.item() == pytest.approx(values[IDS == 2].sum().item(), rel=3e-6)
    assert torch.equal(stats.act.agreements, usual.act.agreements)
    for name in ("teacher_entropy_sum", "student_entropy_sum"):
        torch.testing.assert_close(getattr(stats.reason, name), getattr(usual.reason, name), rtol=2e-6, atol=0)
