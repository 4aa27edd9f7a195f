"""Values and gradients of the top-k KL and the cross-entropy on every backend."""

from __future__ import annotations

import math

import pytest
import torch

import sad
from tests.sadkernels.span_kl_cases import assert_close_to_truth, logits
from tests.sadkernels.topk_cases import IDS, by_hand, case, run, truth

TOPK, CE = sad.fused_topk_span_kl, sad.fused_span_ce
TARGETS = torch.tensor([3, 0, 49, 7, 7, 12, 1, 30])


@pytest.mark.parametrize("tail", ["bucket", "ignore"])
@pytest.mark.parametrize("alpha", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_reference_in_float64_equals_autograd_of_the_formulas(tail, alpha, temperature):
    student, logprobs, ids = case(8, 50, 6, torch.float64)
    targets = TARGETS.clone()
    targets[1] = ids[1, 3]  # this target is in the top k, the others are not
    options = {"tail": tail, "alpha": alpha, "temperature": temperature}
    leaf = student.clone().requires_grad_()
    by_row = by_hand(leaf, logprobs, ids, targets=targets, **options)
    (0.3 * by_row[IDS == 1].sum() + 2.0 * by_row[IDS == 2].sum()).backward()
    got = truth(
        TOPK,
        student,
        (logprobs, ids, IDS),
        target_ids=targets,
        reduction="sum",
        lambda_reason=0.3,
        lambda_act=2.0,
        **options,
    )
    exact = 0.3 * by_row[IDS == 1].sum() + 2.0 * by_row[IDS == 2].sum()
    torch.testing.assert_close(got[0], exact.detach(), rtol=1e-11, atol=0)
    torch.testing.assert_close(got[1], leaf.grad, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum", "span_mean", "none"])
@pytest.mark.parametrize("tail", ["bucket", "ignore"])
def test_gradcheck_of_the_reference(reduction, tail):
    student, logprobs, ids = case(8, 12, 5, torch.float64)
    ids[2, 1] = -1
    options = {"reduction": reduction, "tail": tail, "temperature": 1.9, "shift": True, "vocab_size": 11}
    options |= {"target_ids": TARGETS % 11, "alpha": 0.4, "logit_softcap": 20.0, "logit_scale": 1.3}

    def loss(leaf):
        return TOPK(leaf, logprobs, ids, IDS, **options)

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


@pytest.mark.parametrize("vocab, k", [(1, 1), (7, 7), (16, 1), (257, 64), (2048, 3), (2049, 16), (5003, 100)], ids=str)
@pytest.mark.parametrize("tail", ["bucket", "ignore"])
def test_sizes(backend, vocab, k, tail):
    """One column, k = V, k = 1, odd tails, one block, one block and one column, several blocks."""
    student, logprobs, ids = case(8, vocab, k)
    tensors, options = (logprobs, ids, IDS), {"tail": tail}
    assert_close_to_truth(
        run(TOPK, student, tensors, backend, **options), truth(TOPK, student, tensors, **options), torch.float32
    )


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}], ids=str)
@pytest.mark.parametrize("rows", [1, 24])
def test_long_rows(backend, rows, options):
    student, logprobs, ids = case(rows, 40_003, 50)
    student[0, 17_000:] = -math.inf  # whole slices of a row without probability
    student[0].scatter_(0, ids[0], 1.0)
    tensors = (logprobs, ids, torch.arange(rows) % 3 + 1)
    got = run(TOPK, student, tensors, backend, **options)
    assert_close_to_truth(got, truth(TOPK, student, tensors, **options), torch.float32)


@pytest.mark.parametrize("student_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("teacher_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("id_dtype", [torch.int64, torch.int32, torch.int16], ids=str)
def test_dtypes(backend, student_dtype, teacher_dtype, id_dtype):
    student, logprobs, ids = case(8, 517, 20, student_dtype)
    tensors = (logprobs.to(teacher_dtype), ids.to(id_dtype), IDS)
    options = {"temperature": 1.5, "upstream": 3.0}
    got = run(TOPK, student, tensors, backend, **options)
    assert_close_to_truth(got, truth(TOPK, student, tensors, **options), student_dtype)


@pytest.mark.parametrize("upstream", [1.0, -0.37])
@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "sum", "lambda_reason": 0.25},
        {"reduction": "span_mean", "lambda_act": 3.0},
        {"reduction": "mean", "lambda_reason": 0.0},
        {"reduction": "mean", "normalizer": torch.tensor(17)},
        {"reduction": "span_mean", "normalizer": (5, 11.0)},
        {"reduction": "none", "temperature": 0.7},
    ],
    ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()),
)
def test_reductions_of_the_mixed_loss(backend, options, upstream):
    student, logprobs, ids = case(8, 333, 9)
    tensors = (logprobs, ids, IDS)
    options = options | {"target_ids": torch.where(torch.arange(8) % 2 == 0, ids[:, 2], TARGETS), "alpha": 0.6}
    got = run(TOPK, student, tensors, backend, upstream, **options)
    assert_close_to_truth(got, truth(TOPK, student, tensors, upstream, **options), torch.float32)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("vocab", [50, 5003])
def test_cross_entropy(backend, vocab, reduction):
    student, options = logits(8, vocab), {"reduction": reduction, "temperature": 1.3}
    got = run(CE, student, (TARGETS, IDS), backend, **options)
    leaf = student.double().requires_grad_()
    exact = torch.nn.functional.cross_entropy(leaf / 1.3, TARGETS, reduction="none") * (IDS > 0)
    exact = exact if reduction == "none" else exact.sum() / 5
    exact.sum().backward()
    assert_close_to_truth(got, (exact.detach(), leaf.grad), torch.float32)


def test_cross_entropy_near_certainty(backend):
    """A difference of two numbers of size 30 gives -log q = 0 or 2e-6; the truth is about 5e-7."""
    student = logits(8, 999, scale=1.0)
    student.scatter_(1, TARGETS[:, None], 24.0)
    got, _ = run(CE, student, (TARGETS, IDS), backend, reduction="none")
    exact, _ = truth(CE, student, (TARGETS, IDS), reduction="none")
    assert 1e-9 < exact.max() < 1e-5
    torch.testing.assert_close(got.double(), exact, rtol=5e-6, atol=0)


def test_targets_out_of_range_add_nothing(backend):
    student, targets = logits(8, 50), TARGETS.clone()
    targets[1], targets[2] = -100, 50
    loss, grad = run(CE, student, (targets, IDS), backend, reduction="none")
    assert (loss[[1, 2]] == 0).all() and (grad[[1, 2]] == 0).all() and (loss[[3, 5, 6]] > 0).all()
    mixed = {"target_ids": targets, "alpha": 0.5, "reduction": "none"}
    _, logprobs, ids = case(8, 50, 4)
    got = run(TOPK, student, (logprobs, ids, IDS), backend, **mixed)
    alone = run(TOPK, student, (logprobs, ids, IDS), backend, reduction="none")
    torch.testing.assert_close(got[0][[1, 2]], alone[0][[1, 2]] / 2)
    torch.testing.assert_close(got[1][[1, 2]], alone[1][[1, 2]] / 2)


def test_k_equal_to_the_vocabulary_is_the_full_kl(backend):
    student, teacher = logits(8, 300), logits(8, 300)
    logprobs, ids = teacher.log_softmax(-1).topk(300)
    got = run(TOPK, student, (logprobs, ids, IDS), backend)
    leaf = student.double().requires_grad_()
    exact = sad.fused_span_kl(leaf, teacher.double(), IDS)
    exact.backward()
    torch.testing.assert_close(got[0].double(), exact.detach(), rtol=2e-6, atol=0)
    torch.testing.assert_close(got[1].double(), leaf.grad, rtol=1e-5, atol=1e-6)


def test_bucket_is_a_lower_bound_and_grows_with_k(backend):
    student, teacher = logits(8, 400), logits(8, 400)
    dense = sad.fused_span_kl(student.double(), teacher.double(), IDS, reduction="none")
    before = torch.zeros(8)
    for k in (1, 4, 16, 64, 256):
        logprobs, ids = teacher.double().log_softmax(-1).topk(k)
        kl, _ = run(TOPK, student, (logprobs.float(), ids, IDS), backend, reduction="none")
        assert (kl >= 0).all() and (kl <= dense * (1 + 1e-5)).all() and (kl >= before * (1 - 1e-5)).all()
        before = kl


@pytest.mark.parametrize("tail_mass", [1e-3, 1e-6, 1e-12, 1e-30])
def test_a_small_tail_keeps_its_digits(backend, tail_mass):
    """In float32, 1 - sum q has an error of 10 % at 1e-6 and is 0 below. The tail gradient depends on the tail's q only."""
    student, vocab = logits(8, 3001, scale=1.0), 3001
    columns = torch.stack([torch.randperm(vocab)[:8] for _ in range(8)])
    is_tail = torch.ones_like(student, dtype=torch.bool).scatter(1, columns, False)
    student[is_tail] += math.log(tail_mass) - 8
    logprobs = torch.full((8, 8), math.log(1 / 16))  # half of the teacher's probability is in the tail
    options = {"reduction": "none"}
    got = run(TOPK, student, (logprobs, columns, IDS), backend, **options)
    exact = truth(TOPK, student, (logprobs, columns, IDS), **options)
    torch.testing.assert_close(got[0].double(), exact[0], rtol=2e-6, atol=0)
    read = is_tail & (IDS.clamp(min=0)[:, None] != 0)
    torch.testing.assert_close(got[1].double()[read], exact[1][read], rtol=1e-5, atol=1e-30)
    peaked = torch.full((8, 8), -30.0)
    peaked[:, 0] = math.log1p(-tail_mass) if tail_mass > 1e-8 else 0.0
    got = run(TOPK, student, (peaked, columns, IDS), backend, **options)
    exact = truth(TOPK, student, (peaked, columns, IDS), **options)
    torch.testing.assert_close(got[0].double(), exact[0], rtol=2e-6, atol=0)


def test_non_negative_and_exact_near_convergence(backend):
    teacher = logits(8, 999, scale=2.0)
    student = teacher + 1e-3 * torch.randn_like(teacher)
    logprobs, ids = teacher.double().log_softmax(-1).topk(50)
    kl, _ = run(TOPK, student, (logprobs.float(), ids, IDS), backend, reduction="none")
    exact, _ = truth(TOPK, student, (logprobs.float(), ids, IDS), reduction="none")
    assert (kl >= 0).all() and 1e-9 < exact.max() < 1e-5 and (kl.double() - exact).abs().max() < 5e-9


def test_shift_uses_span_id_and_target_of_the_next_token(backend):
    student, logprobs, ids = (x.view(2, 6, -1) for x in case(12, 64, 5))
    span_ids, targets = torch.tensor([[1, 1, 2, 0, 2, 1], [2, 0, 0, 1, 1, 2]]), torch.randint(0, 64, (2, 6))
    options = {"alpha": 0.5}
    loss, grad = run(TOPK, student, (logprobs, ids, span_ids), backend, shift=True, target_ids=targets, **options)
    cut = (logprobs[:, :-1], ids[:, :-1], span_ids[:, 1:])
    exact = truth(TOPK, student[:, :-1], cut, target_ids=targets[:, 1:], **options)
    assert_close_to_truth((loss, grad[:, :-1]), exact, torch.float32)
    assert (grad[:, -1] == 0).all()


def test_vocab_size_excludes_the_padding(backend):
    student, logprobs, ids = case(8, 71, 6)
    wide = torch.nn.functional.pad(student, (0, 9), value=50.0)
    loss, grad = run(TOPK, wide, (logprobs, ids, IDS), backend, vocab_size=71)
    assert_close_to_truth((loss, grad[:, :71]), truth(TOPK, student, (logprobs, ids, IDS)), torch.float32)
    assert grad.shape == wide.shape and (grad[:, 71:] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scaled_and_capped_logits(backend, dtype):
    student, logprobs, ids = case(8, 2500, 40, dtype)
    options = {"logit_scale": 1.7, "logit_softcap": 15.0, "target_ids": TARGETS, "alpha": 0.7, "reduction": "sum"}
    got = run(TOPK, student, (logprobs, ids, IDS), backend, **options)
    assert_close_to_truth(got, truth(TOPK, student, (logprobs, ids, IDS), **options), dtype)


@pytest.mark.parametrize("lambda_reason", [1.0, 0.0], ids=["", "weight-0-rows-count-in-stats"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_stats(backend, lambda_reason, reduction):
    student, logprobs, ids = case(8, 515, 30)
    student[1, [200, 300]] = 99.0  # a tie: the lowest column wins
    ids[1] = torch.arange(200, 230)
    logprobs[1, [0, 4]] = -0.1
    options = {"lambda_reason": lambda_reason, "temperature": 1.7, "reduction": reduction}
    on_device = (x.to(backend.device) for x in (student, logprobs, ids, IDS))
    _, stats = TOPK(*on_device, return_stats=True, backend=backend.name, **options)
    kl = truth(TOPK, student, (logprobs, ids, IDS), reduction="none", temperature=1.7)[0]
    log_q = (student.double() / 1.7).log_softmax(-1)
    p = logprobs.double().exp()
    left = (1 - p.sum(-1)).clamp(min=0)
    entropy_t = -(p * p.log()).sum(-1) - torch.special.xlogy(left, left)
    best = torch.stack([i[v == v.max()].min() for i, v in zip(ids, logprobs)])
    for kind, ours in ((1, stats.reason), (2, stats.act)):
        of_kind = IDS == kind
        assert ours.tokens == of_kind.sum()
        assert ours.agreements == (student.argmax(-1) == best)[of_kind].sum()
        sums = (kl, entropy_t, -(log_q.exp() * log_q).sum(-1))
        for value, expected in zip((ours.kl_sum, ours.teacher_entropy_sum, ours.student_entropy_sum), sums):
            assert value.shape == () and value.item() == pytest.approx(expected[of_kind].sum().item(), rel=3e-6)
    assert stats.reason.agreements >= 1


def test_stats_of_cross_entropy(backend):
    student = logits(8, 50)
    targets = torch.where(torch.arange(8) < 4, student.argmax(-1), TARGETS)
    on_device = (x.to(backend.device) for x in (student, targets, IDS))
    _, stats = CE(*on_device, return_stats=True, backend=backend.name)
    assert stats.reason.agreements == 2 and stats.act.tokens == 3 and stats.act.teacher_entropy_sum == 0


def test_same_bits_on_every_run_and_for_any_number_of_threads(backend):
    # Enough rows for several threads. The interpreter and the emulation take seconds for so many.
    rows = 90 if backend.name == "cpu" else 12
    student, logprobs, ids = case(rows, 15_001, 20, torch.bfloat16)
    tensors, before, outcomes = (logprobs, ids, torch.arange(rows) % 3), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count if backend.name == "cpu" else before)
            outcomes.append(run(TOPK, student, tensors, backend))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in outcomes[1:] for a, b in zip(outcomes[0], other))


def test_float16_gradient_survives_the_loss_scale(backend):
    student, logprobs, ids = case(8, 1003, 8, torch.float16)
    options = {"normalizer": 200_000, "upstream": 65536.0}
    exact = truth(TOPK, student, (logprobs, ids, IDS), **options)
    assert_close_to_truth(run(TOPK, student, (logprobs, ids, IDS), backend, **options), exact, torch.float16)
