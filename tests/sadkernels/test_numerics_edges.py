"""Large logits, large offsets, JSD near the ends of beta, one column, and infinite upstream gradients."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from mpmath import mpf
from torch import Tensor

import sad
from sadkernels import backends
from sadkernels.divergence import DivergenceConfig
from sadkernels.ops import vocab_parallel
from sadkernels.reference import span_kl as reference
from tests.sadkernels import topk_cases
from tests.sadkernels.span_kl_cases import logits, run, truth

ONE = torch.tensor([1])
DIVERGENCES = [{}, {"divergence": "reverse_kl"}, {"divergence": "jsd", "beta": 0.3}]
BY_DIVERGENCE = pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda o: o.get("divergence", "forward_kl"))
ENDS = [1e-30, 1e-17, 1e-8, 1e-6, 1e-3, 0.5, 1 - 1e-3, 1 - 1e-6, 1 - 1e-8, 1 - 2**-53]


def assert_equals(
    got: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor], value: float = 2e-6, grad: float = 3e-6, operand: float = 0.0
) -> None:
    """Compares loss and gradient to relative bounds; that of the gradient is relative to its largest element.

    `operand` is the magnitude of the two numbers whose difference is the gradient, if they can be much larger than it.
    """
    torch.testing.assert_close(got[0].double(), exact[0].double(), rtol=value, atol=1e-30)
    error, largest = (got[1].double() - exact[1]).abs().max().item(), max(exact[1].abs().max().item(), operand)
    assert error <= grad * largest, f"gradient error {error} against {largest}"


def cross_entropy(student: Tensor, label: int, backend, **options) -> tuple[Tensor, Tensor]:
    """Returns loss and gradient of one row."""
    labels = torch.tensor([label])
    return topk_cases.run(sad.fused_span_ce, student, (labels, ONE), backend, **options)


def exact_cross_entropy(student: Tensor, label: int, **options) -> tuple[Tensor, Tensor]:
    """Returns loss and gradient of one row in float64, from PyTorch."""
    leaf = student.double().requires_grad_()
    loss = -(leaf / options.get("temperature", 1.0)).log_softmax(-1)[0, label]
    loss.backward()
    return loss.detach(), leaf.grad


class TestLargeLogits:
    """Exponents z log2(e) / T beyond 2^31, up to the largest float."""

    STUDENT = torch.tensor([[3.4e7, -3.4e7, 0.0, 0.0]])

    @pytest.mark.parametrize("label", range(4))
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_cross_entropy(self, backend, label, reduction):
        options = {"temperature": 0.01}
        loss, grad = cross_entropy(self.STUDENT, label, backend, reduction=reduction, **options)
        exact = exact_cross_entropy(self.STUDENT, label, **options)
        assert_equals((loss.view(()), grad), exact, operand=100.0)  # 1 / T

    @BY_DIVERGENCE
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    @pytest.mark.parametrize("teacher", [[0.0, 0.0, 1.0, 2.0], [-3.4e7, 3.4e7, 0.0, 0.0], [3.4e7, 3.4e7, 0.0, 1.0]], ids=str)
    def test_divergences(self, backend, divergence, reduction, teacher):
        options = {"temperature": 0.01, "reduction": reduction, **divergence}
        teacher = torch.tensor([teacher])
        got, exact = run(self.STUDENT, teacher, ONE, backend, **options), truth(self.STUDENT, teacher, ONE, **options)
        assert_equals(got, exact, operand=100.0)  # 1 / T

    @pytest.mark.parametrize("logit", [-1e30, 1e30, 3e38, -3e38, 1e6], ids=str)
    @pytest.mark.parametrize("vocab", [3, 50, 5003], ids=lambda v: f"V{v}")
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_equal_logits_are_uniform(self, backend, logit, vocab, reduction):
        student, teacher = torch.full((1, vocab), logit), logits(1, vocab)
        uniform = torch.zeros(1, vocab)
        for divergence in DIVERGENCES:
            options = {"reduction": reduction, **divergence}
            got, exact = run(student, teacher, ONE, backend, **options), truth(uniform, teacher, ONE, **options)
            assert_equals(got, exact)
            assert (run(student, uniform, ONE, backend, **options)[0] == 0).all()
        loss, grad = cross_entropy(student, vocab // 2, backend, reduction=reduction)
        assert_equals((loss.view(()), grad), exact_cross_entropy(uniform, vocab // 2))

    def test_statistics_of_equal_logits(self, backend):
        student = torch.full((1, 40), -1e30)
        on_device = (x.to(backend.device) for x in (student, student / 7, ONE))
        loss, stats = sad.fused_span_kl(*on_device, return_stats=True, backend=backend.name)
        assert loss == 0 and stats.reason.agreements == 1
        for entropy in (stats.reason.student_entropy_sum, stats.reason.teacher_entropy_sum):
            assert entropy.item() == pytest.approx(math.log(40), rel=1e-6)

    def test_topk_of_large_logits(self, backend):
        """Top-k columns, label and tail at 1e30, and a tail far below them."""
        for student in (torch.full((1, 40), -1e30), torch.cat([torch.full((1, 3), 1e6), torch.zeros(1, 37)], dim=1)):
            logprobs, ids, labels = torch.tensor([[0.5, 0.3]]).log(), torch.tensor([[0, 2]]), torch.tensor([1])
            options = {"target_ids": labels, "alpha": 0.6}
            got = topk_cases.run(sad.fused_topk_span_kl, student, (logprobs, ids, ONE), backend, **options)
            shifted = student.double() - student.double().amax()
            exact = topk_cases.truth(sad.fused_topk_span_kl, shifted, (logprobs, ids, ONE), **options)
            by_hand = topk_cases.by_hand(shifted, logprobs, ids, targets=labels, alpha=0.6)
            torch.testing.assert_close(exact[0], by_hand[0], rtol=1e-7, atol=0)
            assert_equals(got, exact)

    def test_a_row_of_minus_infinity_without_a_label(self, backend):
        """Its probabilities are NaN, but no term of the cross-entropy uses them."""
        student, labels = torch.cat([torch.full((1, 40), -math.inf), logits(1, 40)]), torch.tensor([-100, 3])
        loss, grad = topk_cases.run(sad.fused_span_ce, student, (labels, torch.tensor([1, 1])), backend)
        assert loss.isfinite() and (grad[0] == 0).all() and grad[1].isfinite().all() and (grad[1] != 0).any()


class TestLargeOffsets:
    """A softmax does not change if all logits of a row grow by the same number, here one that adds without rounding."""

    IDS = torch.tensor([0, 1, 2, 1, 0, 2, 2, -100])

    @BY_DIVERGENCE
    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    @pytest.mark.parametrize("offset", [100.0, -1e4, 1e6], ids=str)
    def test_divergences(self, backend, divergence, temperature, reduction, offset):
        student, teacher = ((8 * logits(8, 2100)).round() / 8 for _ in range(2))
        options = {"temperature": temperature, "reduction": reduction, **divergence}
        got = run(student + offset, teacher - offset, self.IDS, backend, **options)
        if backend.name in ("reference", "cpu"):
            assert_equals(got, run(student, teacher, self.IDS, backend, **options), grad=1e-6)
            return
        # A GPU kernel subtracts a float32 near the largest logit. An offset changes it, so the results differ by roundings.
        # The gradient is q / T times a difference, and 5 tokens count.
        operand = (student.double() / temperature).softmax(-1).amax().item() / temperature
        operand /= 5 if reduction == "mean" else 1
        assert_equals(got, truth(student, teacher, self.IDS, **options), operand=operand)

    @pytest.mark.parametrize("offset", [100.0, -100.0])
    def test_float16(self, backend, offset):
        student, teacher = ((4 * logits(8, 300)).round() / 4 for _ in range(2))
        got = run((student + offset).half(), (teacher + offset).half(), self.IDS, backend)
        assert_equals(got, truth(student, teacher, self.IDS), grad=5e-4)  # half an ulp of float16

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    @pytest.mark.parametrize("offset", [100.0, -1e4, 1e6], ids=str)
    def test_topk(self, backend, temperature, reduction, offset):
        student, logprobs, ids = topk_cases.case(8, 2100, 40, temperature=temperature)
        student, labels = (8 * student).round() / 8, torch.randint(0, 2100, (8,))
        options = {"target_ids": labels, "alpha": 0.5, "temperature": temperature, "reduction": reduction}
        tensors = (logprobs, ids, self.IDS)
        got = topk_cases.run(sad.fused_topk_span_kl, student + offset, tensors, backend, **options)
        assert_equals(got, topk_cases.run(sad.fused_topk_span_kl, student, tensors, backend, **options), grad=1e-6)

    @pytest.mark.parametrize("reduction", ["mean", "none"])
    def test_cross_entropy(self, backend, reduction):
        student = (8 * logits(1, 2100)).round() / 8
        for label in (int(student.argmax()), 5):
            loss, grad = cross_entropy(student - 1e4, label, backend, reduction=reduction, temperature=0.7)
            assert_equals((loss.view(()), grad), exact_cross_entropy(student, label, temperature=0.7))

    @BY_DIVERGENCE
    @pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"student_softcap": 5.0, "student_scale": 2.0}], ids=str)
    def test_slices_of_a_shared_vocabulary(self, backend, divergence, options):
        """Two slices at 1e4 and one of only -inf, merged as `process_group` merges those of the ranks."""
        kernel, ids = backends.implementation(backend.name, "span_kl"), torch.ones(8, dtype=torch.uint8)
        student, teacher = ((8 * logits(8, 300)).round() / 8 for _ in range(2))
        capped = "student_softcap" in options
        if not capped:  # the cap makes -inf finite
            student[:, 200:] = teacher[:, 200:] = -math.inf
        config, upstream = DivergenceConfig(300, **options, **divergence), torch.ones(8)
        exact_grad = torch.empty(8, 300, dtype=torch.float64)
        exact = reference.forward_backward(
            student.double(), teacher.double(), ids, upstream.double(), config, stats=False, grad=exact_grad
        )
        offset = 0.0 if capped else 1e4
        student, teacher, ids, upstream = (x.to(backend.device) for x in (student + offset, teacher - 1e4, ids, upstream))
        slices = [
            (student[:, at : at + 100], teacher[:, at : at + 100], ids, config._replace(vocab_size=100))
            for at in (0, 100, 200)
        ]
        lse = vocab_parallel.merged(torch.stack([kernel.log_sum_exps(*x) for x in slices]), config)
        parts = [kernel.forward(*x, stats=False, lse=lse) for x in slices]
        value, mean_dlogp = sum(x.value for x in parts), sum(x.state[2] for x in parts)
        state, grad = torch.cat([lse[:2], mean_dlogp[None], lse[2:]]), torch.empty_like(student)
        for at, (s, t, kinds, some) in zip((0, 100, 200), slices):
            kernel.backward(s, t, kinds, state, upstream, some, grad=grad[:, at : at + 100])
        assert_equals((value.cpu(), grad.cpu()), (exact.value, exact_grad), grad=5e-6, operand=0.1)


class TestJsdNearTheEndsOfBeta:
    """JSD / beta becomes forward_kl towards 0, JSD / (1 - beta) becomes reverse_kl towards 1."""

    @pytest.mark.parametrize("beta", ENDS, ids=str)
    def test_reference_in_float64_equals_mpmath(self, beta):
        student, teacher = logits(1, 20, torch.float64), logits(1, 20, torch.float64)
        with mpmath.workdps(60):
            q, p = ([mpmath.exp(mpf(x)) for x in side[0].tolist()] for side in (student, teacher))
            q, p = ([x / sum(side) for x in side] for side in (q, p))
            m = [mpf(beta) * x + (1 - mpf(beta)) * y for x, y in zip(p, q)]
            of_teacher, of_student = (sum(x * mpmath.log(x / y) for x, y in zip(side, m)) for side in (p, q))
            slopes = [(1 - mpf(beta)) * mpmath.log(x / y) for x, y in zip(q, m)]
            mean = sum(x * slope for x, slope in zip(q, slopes))
            value = torch.tensor(float(mpf(beta) * of_teacher + (1 - mpf(beta)) * of_student), dtype=torch.float64)
            grad = torch.tensor([[float(x * (slope - mean)) for x, slope in zip(q, slopes)]], dtype=torch.float64)
        got = truth(student, teacher, ONE, divergence="jsd", beta=beta)
        assert_equals(got, (value, grad), value=1e-13, grad=1e-12)

    @pytest.mark.parametrize("beta", ENDS, ids=str)
    @pytest.mark.parametrize("reduction", ["mean", "none"])
    @pytest.mark.parametrize("distance", [3.0, 0.1, 20.0])
    def test_value_and_gradient(self, backend, beta, reduction, distance):
        student = logits(8, 300)
        teacher = student + distance * torch.randn(8, 300)
        options = {"divergence": "jsd", "beta": beta, "reduction": reduction}
        ids = torch.ones(8, dtype=torch.long)
        exact = truth(student, teacher, ids, **options)
        operand = distance * (1 - beta) if distance > 10 else 0.0  # log-ratios that cancel in the gradient
        assert_equals(run(student, teacher, ids, backend, **options), exact, value=5e-6, grad=1e-5, operand=operand)

    @pytest.mark.parametrize("beta, name", [(1e-7, "forward_kl"), (1 - 1e-7, "reverse_kl")])
    def test_limit(self, backend, beta, name):
        student, teacher, ids = torch.randn(8, 300), torch.randn(8, 300), torch.ones(8, dtype=torch.long)
        weight = beta if name == "forward_kl" else 1 - beta
        value, grad = run(student, teacher, ids, backend, divergence="jsd", beta=beta)
        exact = truth(student, teacher, ids, divergence=name)
        assert_equals((value.double() / weight, grad.double() / weight), exact, value=1e-5, grad=1e-5)

    def test_equal_rows(self, backend):
        student = logits(8, 300)
        for beta in ENDS:
            options = {"divergence": "jsd", "beta": beta}
            value, grad = run(student, student, torch.ones(8, dtype=torch.long), backend, **options)
            assert value == 0 and (grad == 0).all()


class TestOneColumn:
    """A softmax over one column is 1: losses and gradients are exactly 0."""

    @BY_DIVERGENCE
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(
        "options", [{}, {"reduction": "none"}, {"temperature": 0.3}, {"logit_softcap": 5.0}, {"vocab_size": 1}], ids=str
    )
    def test_divergences(self, backend, divergence, dtype, options):
        columns = 4 if "vocab_size" in options else 1
        student, teacher = 9 * torch.randn(8, columns), 9 * torch.randn(8, columns)
        ids = torch.ones(8, dtype=torch.long)
        loss, grad = run(student.to(dtype), teacher.to(dtype), ids, backend, upstream=3.0, **options, **divergence)
        assert (loss == 0).all() and (grad == 0).all()

    @pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"temperature": 0.3, "logit_softcap": 5.0}], ids=str)
    def test_topk_and_labels(self, backend, options):
        student, zeros, ids = 9 * torch.randn(8, 1), torch.zeros(8, 1), torch.ones(8, dtype=torch.long)
        targets = {"target_ids": torch.zeros(8, dtype=torch.long), "alpha": 0.5}
        tensors = (zeros, zeros.long(), ids)
        for got in (
            topk_cases.run(sad.fused_topk_span_kl, student, tensors, backend, **options),
            topk_cases.run(sad.fused_topk_span_kl, student, tensors, backend, **options, **targets),
            topk_cases.run(sad.fused_span_ce, student, (targets["target_ids"], ids), backend, **options),
        ):
            assert (got[0] == 0).all() and (got[1] == 0).all()


class TestInfiniteUpstreamGradient:
    """The gradient of padding columns and of rows without a span is exactly 0 whatever the upstream gradient is."""

    IDS = torch.tensor([0, 1, 2, -100])

    @BY_DIVERGENCE
    @pytest.mark.parametrize("upstream", [math.inf, -math.inf, math.nan], ids=str)
    @pytest.mark.parametrize("reduction", ["none", "mean"])
    def test_divergences(self, backend, divergence, upstream, reduction):
        student, teacher = torch.randn(4, 70), torch.randn(4, 64)
        options = {"upstream": upstream, "reduction": reduction, "vocab_size": 60, **divergence}
        _, grad = run(student, teacher, self.IDS, backend, **options)
        assert (grad[:, 60:] == 0).all() and (grad[[0, 3]] == 0).all() and not grad[1:3, :60].isfinite().any()

    @pytest.mark.parametrize("upstream", [math.inf, math.nan], ids=str)
    @pytest.mark.parametrize("reduction", ["none", "mean"])
    def test_topk_and_labels(self, backend, upstream, reduction):
        student, logprobs, ids = topk_cases.case(4, 70, 3)
        options = {"reduction": reduction, "vocab_size": 70, "target_ids": torch.tensor([1, 2, 3, 4]), "alpha": 0.5}
        student = torch.cat([student, torch.zeros(4, 9)], dim=1)
        _, grad = topk_cases.run(
            sad.fused_topk_span_kl, student, (logprobs, ids, self.IDS), backend, upstream=upstream, **options
        )
        assert (grad[:, 70:] == 0).all() and (grad[[0, 3]] == 0).all() and not grad[1:3, :70].isfinite().any()

    def test_scale_writes_only_the_columns_of_a_view(self, backend):
        kernel = backends.implementation(backend.name, "span_kl")
        grad = torch.zeros(4, 70, device=backend.device)
        grad[1:3, :60] = 1.0
        kinds = torch.tensor([0, 1, 2, 0], dtype=torch.uint8, device=backend.device)
        kernel.scale(grad[:, :60], kinds, torch.tensor(math.inf, device=backend.device))
        assert (grad[1:3, :60] == math.inf).all() and (grad[:, 60:] == 0).all() and (grad[[0, 3]] == 0).all()
