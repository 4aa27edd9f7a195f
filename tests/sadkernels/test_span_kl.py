"""Values and gradients of the span KL on every backend, compared with the reference in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import sad
from tests.sadkernels.conftest import Backend
from tests.sadkernels.span_kl_cases import assert_close_to_truth, logits, run, truth

IDS = torch.tensor([0, 1, 2, 1, 0, 2, 2, -100])  # all kinds and padding


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_reference_in_float64_equals_pytorch(temperature):
    student, teacher = logits(8, 300, torch.float64), logits(8, 300, torch.float64)
    leaf = student.clone().requires_grad_()
    per_token = F.kl_div(
        F.log_softmax(leaf / temperature, -1), F.log_softmax(teacher / temperature, -1), reduction="none", log_target=True
    ).sum(-1)
    loss = 0.3 * per_token[IDS == 1].sum() + 2.0 * per_token[IDS == 2].sum()
    loss.backward()
    ours, grad = truth(student, teacher, IDS, temperature=temperature, lambda_reason=0.3, lambda_act=2.0, reduction="sum")
    torch.testing.assert_close(ours, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, leaf.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("vocab", [1, 7, 16, 257, 2048, 2049, 5003], ids=lambda v: f"V{v}")
def test_sizes(backend, vocab):
    """One column, less than a vector, whole vectors, odd tails, one block, one block and one column, several blocks."""
    student, teacher = logits(8, vocab), logits(8, vocab)
    assert_close_to_truth(run(student, teacher, IDS, backend), truth(student, teacher, IDS), torch.float32)


@pytest.mark.parametrize("options", [{}, {"divergence": "jsd"}, {"reduction": "none"}], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 24])
def test_long_rows(backend, rows, options):
    """Few rows, which threads or thread blocks share, and enough rows for one each."""
    student, teacher = logits(rows, 40_003), logits(rows, 40_003)
    teacher[0, 17_000:] = -math.inf  # whole slices of a row without probability
    ids = torch.arange(rows) % 3 + 1  # every third row has no span
    got = run(student, teacher, ids, backend, **options)
    assert_close_to_truth(got, truth(student, teacher, ids, **options), torch.float32)


@pytest.mark.parametrize("student_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("teacher_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(backend, student_dtype, teacher_dtype):
    student, teacher = logits(8, 517, student_dtype), logits(8, 517, teacher_dtype)
    options = {"temperature": 1.5, "upstream": 3.0}
    assert_close_to_truth(
        run(student, teacher, IDS, backend, **options), truth(student, teacher, IDS, **options), student_dtype
    )


@pytest.mark.parametrize("upstream", [1.0, -0.37])
@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "mean"},
        {"reduction": "sum", "lambda_reason": 0.25},
        {"reduction": "span_mean", "lambda_act": 3.0},
        {"reduction": "mean", "lambda_reason": 0.0},
        {"reduction": "mean", "normalizer": 17},
        {"reduction": "mean", "normalizer": torch.tensor(17)},
        {"reduction": "span_mean", "normalizer": (5, 11.0)},
        {"reduction": "none", "temperature": 0.7},
    ],
    ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()),
)
def test_reductions(backend, options, upstream):
    student, teacher = logits(8, 333), logits(8, 333)
    on_device = {k: v.to(backend.device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    got = run(student, teacher, IDS, backend, upstream, **on_device)
    assert_close_to_truth(got, truth(student, teacher, IDS, upstream, **options), torch.float32)


def test_reductions_by_hand():
    """Each reduction, computed from the values per token."""
    student, teacher = logits(8, 50), logits(8, 50)
    kl = sad.fused_span_kl(student, teacher, IDS, reduction="none", lambda_reason=9.0)  # not weighted by lambda
    reason, act = kl[IDS == 1].sum(), kl[IDS == 2].sum()
    expected = {
        "sum": 0.5 * reason + 2 * act,
        "mean": (0.5 * reason + 2 * act) / 5,
        "span_mean": 0.5 * reason / 2 + 2 * act / 3,
    }
    for reduction, value in expected.items():
        loss = sad.fused_span_kl(student, teacher, IDS, reduction=reduction, lambda_reason=0.5, lambda_act=2.0)
        torch.testing.assert_close(loss, value)
    assert (kl[(IDS != 1) & (IDS != 2)] == 0).all() and kl.shape == IDS.shape


def test_upstream_gradient_per_row(backend):
    student, teacher = logits(8, 90), logits(8, 90)
    upstream = torch.randn(8)
    options = {"reduction": "none"}
    got = run(student, teacher, IDS, backend, upstream, **options)
    assert_close_to_truth(got, truth(student, teacher, IDS, upstream, **options), torch.float32)


def test_shift_uses_the_span_id_of_the_next_token(backend):
    student, teacher = logits(12, 64).view(2, 6, 64), logits(12, 64).view(2, 6, 64)
    ids = torch.tensor([[1, 1, 2, 0, 2, 1], [2, 0, 0, 1, 1, 2]])  # position 0 is not used
    loss, grad = run(student, teacher, ids, backend, shift=True)
    exact = truth(student[:, :-1], teacher[:, :-1], ids[:, 1:])
    assert_close_to_truth((loss, grad[:, :-1]), exact, torch.float32)
    assert (grad[:, -1] == 0).all()
    unreduced, _ = run(student, teacher, ids, backend, shift=True, reduction="none")
    assert unreduced.shape == ids.shape and (unreduced[:, -1] == 0).all()


@pytest.mark.parametrize("columns", [(71, 80), (80, 71), (80, 80)], ids=str)
def test_padded_vocabularies_exclude_the_padding(backend, columns):
    """Zeros in the padding would get probability."""
    student, teacher = logits(8, columns[0]), logits(8, columns[1])
    options = {"vocab_size": 71} if min(columns) > 71 else {}
    loss, grad = run(student, teacher, IDS, backend, **options)
    assert_close_to_truth((loss, grad[:, :71]), truth(student[:, :71], teacher[:, :71], IDS), torch.float32)
    assert grad.shape == student.shape and (grad[:, 71:] == 0).all()


def test_non_negative_and_exact_near_convergence(backend):
    """A difference of log-sum-exps has an error of 1e-6 here and can be negative; the truth is about 5e-7."""
    student = logits(8, 4099, scale=2.0)
    teacher = student + 1e-3 * torch.randn_like(student)
    kl, _ = run(student, teacher, IDS, backend, reduction="none")
    exact, _ = truth(student, teacher, IDS, reduction="none")
    assert (kl >= 0).all()
    assert (kl.double() - exact).abs().max() < 2e-9 and 1e-8 < exact.max() < 1e-5
    same, grad = run(student, student, IDS, backend)
    assert same == 0 and (grad == 0).all()


def test_denormal_probabilities(backend):
    """expm1(log q - log p) overflows for a denormal p; the sum is 100, not inf."""
    loss, _ = run(torch.tensor([[0.0, 100.0]]), torch.tensor([[95.0, 0.0]]), torch.tensor([1]), backend)
    assert loss == pytest.approx(100.0, rel=1e-6)


def test_infinite_logits(backend):
    inf = math.inf
    student, teacher = logits(8, 100), logits(8, 100)
    teacher[1, :50] = -inf  # contributes 0 to the sum over p
    student[2, 3] = -inf  # p > 0 = q
    student[3, :20] = teacher[3, :20] = -inf  # masked on both sides
    kl, grad = run(student, teacher, IDS, backend, reduction="none")
    exact_kl, exact_grad = truth(student, teacher, IDS, reduction="none")
    assert kl[2] == inf and torch.isfinite(grad).all() and torch.isfinite(kl[[1, 3, 5, 6]]).all()
    torch.testing.assert_close(kl.double(), exact_kl, rtol=2e-6, atol=0)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-5, atol=1e-7)
    masked = F.kl_div(student[3, 20:].log_softmax(-1), teacher[3, 20:].log_softmax(-1), reduction="sum", log_target=True)
    torch.testing.assert_close(kl[3], masked)


@pytest.mark.parametrize("offset", [-32.0, 32.0, -(2.0**120)], ids=str)
def test_logits_far_from_zero(backend, offset):
    """An offset does not change a softmax. The last offset rounds all logits to the same value."""
    student, teacher = logits(8, 3000).round() + offset, logits(8, 3000).round() + offset
    assert_close_to_truth(run(student, teacher, IDS, backend), truth(student, teacher, IDS), torch.float32)


def test_leading_block_of_minus_infinity(backend):
    """The running maximum is -inf for more than one block of columns."""
    student, teacher = logits(8, 9000), logits(8, 9000)
    student[:, :8500] = teacher[:, :8500] = -math.inf
    assert_close_to_truth(run(student, teacher, IDS, backend), truth(student, teacher, IDS), torch.float32)


@pytest.mark.parametrize("poison", ["nan in student", "nan in teacher", "all -inf", "+inf"])
def test_nan_in_nan_out(backend, poison):
    student, teacher = logits(8, 100), logits(8, 100)
    if poison == "all -inf":
        student[1] = -math.inf
    elif poison == "+inf":
        teacher[1, 99] = math.inf
    else:
        (student if "student" in poison else teacher)[1, 42] = math.nan
    kl, _ = run(student, teacher, IDS, backend, reduction="none")
    assert kl[1].isnan() and kl[[0, 2, 3, 4, 5, 6, 7]].isfinite().all()


def test_unsupervised_rows_are_not_read(backend):
    student, teacher = logits(8, 700), logits(8, 700)
    clean = run(student, teacher, IDS, backend, lambda_reason=0.0)
    unread = IDS != 2  # no kind, or a kind of weight 0
    student[unread] = math.nan
    teacher[unread] = math.inf
    loss, grad = run(student, teacher, IDS, backend, lambda_reason=0.0)
    assert torch.equal(loss, clean[0]) and torch.equal(grad, clean[1]) and (grad[unread] == 0).all()


@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("reduction", ["mean", "sum", "span_mean", "none"])
def test_nothing_supervised_is_exactly_zero(backend, rows, reduction):
    student = torch.full((rows, 30), math.nan)
    ids = torch.zeros(rows, dtype=torch.uint8)
    loss, grad = run(student, student, ids, backend, reduction=reduction, upstream=2.0)
    assert (loss == 0).all() and grad.shape == student.shape and (grad == 0).all()


def test_one_kind_missing_in_span_mean(backend):
    student, teacher = logits(3, 60), logits(3, 60)
    ids = torch.tensor([2, 0, 2])
    options = {"reduction": "span_mean"}
    assert_close_to_truth(
        run(student, teacher, ids, backend, **options), truth(student, teacher, ids, **options), torch.float32
    )


@pytest.mark.parametrize("lambda_reason", [1.0, 0.0], ids=["", "weight-0-rows-count-in-stats"])
def test_stats(backend, lambda_reason):
    student, teacher = logits(8, 515), logits(8, 515)
    student[1, [200, 300]] = 99.0  # a tie: the lowest column wins
    teacher[1, 200] = 99.0
    teacher[5, :9] = -math.inf
    options = {"temperature": 1.7, "lambda_reason": lambda_reason}
    on_device = (x.to(backend.device) for x in (student, teacher, IDS))
    loss, stats = sad.fused_span_kl(*on_device, return_stats=True, backend=backend.name, **options)
    torch.testing.assert_close(loss.cpu().double(), truth(student, teacher, IDS, **options)[0], rtol=2e-6, atol=0)
    log_q, log_p = ((x.double() / 1.7).log_softmax(-1) for x in (student, teacher))
    entropy_t, entropy_s = (-torch.where(x.exp() == 0, 0, x.exp() * x).sum(-1) for x in (log_p, log_q))
    kl = torch.where(log_p.exp() == 0, 0, log_p.exp() * (log_p - log_q)).sum(-1)
    agree = student.argmax(-1) == teacher.argmax(-1)
    for kind, ours in ((1, stats.reason), (2, stats.act)):
        of_kind = IDS == kind
        assert ours.tokens == of_kind.sum() and ours.agreements == agree[of_kind].sum()
        for value, expected in (
            (ours.kl_sum, kl),
            (ours.teacher_entropy_sum, entropy_t),
            (ours.student_entropy_sum, entropy_s),
        ):
            assert value.shape == () and value.item() == pytest.approx(expected[of_kind].sum().item(), rel=3e-6)
    assert stats.reason.agreements >= 1


def test_same_bits_on_every_run(backend):
    student, teacher = logits(8, 1501, torch.bfloat16), logits(8, 1501, torch.bfloat16)
    first, second = (run(student, teacher, IDS, backend) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("options", [{}, {"divergence": "jsd"}, {"reduction": "none"}], ids=str)
@pytest.mark.parametrize("rows, vocab", [(900, 1501), (8, 150_001)], ids=["whole rows", "shared rows"])
def test_same_bits_for_any_number_of_threads(rows, vocab, options, threads):
    """Enough work for several threads. Threads share the remaining long rows (5 of 8) in slices."""
    backend = Backend("cpu", torch.device("cpu"))
    student, teacher = logits(rows, vocab, torch.bfloat16), logits(rows, vocab, torch.bfloat16)
    ids = torch.arange(rows) % 3
    before, outcomes = torch.get_num_threads(), []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            outcomes.append(run(student, teacher, ids, backend, **options))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outcomes[0][0], outcomes[1][0]) and torch.equal(outcomes[0][1], outcomes[1][1])


def test_float16_gradient_survives_the_loss_scale(backend):
    """Most of these gradients would be 0 in float16 if they were stored before the scale of 2^16 is applied."""
    student, teacher = logits(8, 1003, torch.float16), logits(8, 1003, torch.float16)
    options = {"normalizer": 200_000, "upstream": 65536.0}
    exact = truth(student, teacher, IDS, **options)
    assert ((exact[1] / 65536).abs() < 2**-24).float().mean() > 0.9
    assert_close_to_truth(run(student, teacher, IDS, backend, **options), exact, torch.float16)


def test_finite_differences(backend):
    """The slope of the value along a direction equals that of the gradient, with T != 1 and an upstream gradient != 1."""
    student, teacher, direction = logits(8, 40), logits(8, 40), torch.randn(8, 40)
    options = {"temperature": 2.0, "lambda_act": 0.4}
    _, grad = run(student, teacher, IDS, backend, upstream=5.0, **options)
    step = 1e-2
    above, below = (run(student + s * direction, teacher, IDS, backend, **options)[0].double() for s in (step, -step))
    assert (5.0 * (above - below) / (2 * step)).item() == pytest.approx((grad * direction).sum().item(), rel=1e-3)


@pytest.mark.parametrize("reduction", ["mean", "sum", "span_mean", "none"])
def test_gradcheck_of_the_reference(reduction):
    teacher = logits(8, 12, torch.float64)
    options = {"reduction": reduction, "temperature": 1.9, "shift": True, "vocab_size": 11}

    def loss(student):
        return sad.fused_span_kl(student, teacher, IDS, **options)

    assert torch.autograd.gradcheck(loss, logits(8, 12, torch.float64).requires_grad_())
