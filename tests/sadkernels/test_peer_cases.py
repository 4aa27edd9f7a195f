"""The cases of other projects' loss tests (`peer_cases.py`) on our losses, against the float64 formulas of `peer_truth.py`.

Rows are independent. A case with many rows runs with the first of them, as `MOST` allows; V is always the project's.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sad
from tests.sadkernels import conftest
from tests.sadkernels.peer_cases import (
    CCE,
    FAST_LLM,
    LIGER,
    LIGER_LINEAR,
    LIGER_UNDERFLOW,
    SPECULATORS,
    TRL,
    TRL_LINEAR,
    Case,
    HeadCase,
    LinearCase,
    bf16,
    f16,
    f32,
)
from tests.sadkernels.peer_truth import assert_close, cross_entropies, divergences, reduced
from tests.sadkernels.span_kl_cases import output

ON_HOST = () if torch.cuda.is_available() else ("triton", "cuda")  # backends that are interpreted or emulated here
MOST = {True: (4, 2**13), False: (2**12, 2**19)}  # rows, and rows x V, on these backends and on the others
MOST_COLUMNS = 1500  # V on these backends; they take seconds for more
LARGE = 2_000  # with more columns one instruction set of the CPU is enough
# Our own bound on |got - exact| / |exact|: several absolute tolerances of the projects are larger than the gradients.
ERROR = {f32: 1e-5, f16: 1e-3, bf16: 4e-3}
LINEAR_ERROR = {f32: 3e-4, f16: 2e-3, bf16: 6e-3}  # the logits of `uniform` are about 100, so float32 rounds them by 1e-5
UNDERFLOW_ERROR = {f32: 1e-4, f16: 1e-3, bf16: 4e-3}  # GPU kernels lose digits of a JSD whose beta is near 0 or 1
LOSS_SCALE = {f32: 1.0, f16: 2.0**10, bf16: 1.0}  # keeps the gradient of a mean in the range of float16


def on_backends(*tables: dict[str, list]) -> pytest.MarkDecorator:
    """Every case on every backend that runs its V in reasonable time."""
    pairs = []
    for source, cases in (item for table in tables for item in table.items()):
        name = source.rpartition("/")[2].removesuffix(".py")
        for n, case in enumerate(cases):
            vocab = case.vocab if isinstance(case, HeadCase) else case.shape[-1]
            backends = ["reference", "cpu", "triton", "cuda"] if vocab > LARGE else conftest._all()
            backends = [x for x in backends if x not in ON_HOST or vocab <= MOST_COLUMNS]
            pairs += [pytest.param(backend, case, id=f"{backend}-{name}-{n}") for backend in backends]
    return pytest.mark.parametrize(("backend", "case"), pairs, indirect=["backend"])


def leading(shape: tuple[int, ...], backend) -> tuple[int, ...]:
    """Returns the shape without V, with as many rows as the backend runs in reasonable time."""
    *batch, last, vocab = shape
    most, elements = MOST[backend.name in ON_HOST]
    most = min(most, max(1, elements // vocab))
    return (*(min(size, max(1, most // last)) for size in batch), min(last, most))


def span_ids(shape: tuple[int, ...], ignored: float) -> Tensor:
    """Returns ids of both kinds; the share `ignored` of the rows has none."""
    ids = 1 + torch.arange(math.prod(shape)) % 2
    ids[torch.randperm(len(ids))[: round(ignored * len(ids))]] = -100
    return ids.view(shape)


def divergence(beta: float) -> dict[str, object]:
    """Returns our options for another project's beta."""
    if beta in (0.0, 1.0):
        return {"divergence": "reverse_kl" if beta else "forward_kl"}
    return {"divergence": "jsd", "beta": beta}


@on_backends(LIGER, TRL, FAST_LLM, SPECULATORS)
def test_logits(backend, case: Case):
    """`fused_span_kl`; without a beta `fused_span_ce`."""
    shape, vocab = leading(case.shape, backend), case.shape[-1]
    teacher, noise = case.scale * torch.randn(*shape, vocab), torch.randn(*shape, vocab)
    targets = torch.randint(0, vocab, shape)
    if case.distance is None:
        student = case.scale * noise
    else:
        center = teacher if case.beta is not None else torch.nn.functional.one_hot(targets, vocab)
        student = center + case.distance * noise
    student, teacher, ids = student.to(case.dtype), teacher.to(case.dtype), span_ids(shape, case.ignored)
    normalizer = ids.numel() if case.counts_masked else None
    upstream = torch.tensor(case.upstream * LOSS_SCALE[case.dtype])
    if case.reduction == "none":
        upstream = torch.randn(shape) * (torch.arange(shape[-1]) % 3 > 0)

    exact_leaf, factor = student.double().requires_grad_(), case.logit_scale / case.temperature
    if case.beta is None:
        rows = cross_entropies(exact_leaf * factor, targets)
    else:
        rows = divergences(exact_leaf * factor, teacher.double() * factor, case.beta)
    exact = reduced(rows, ids, case.reduction, normalizer)
    exact.backward(upstream.double())

    options = {"temperature": case.temperature, "reduction": case.reduction, "normalizer": normalizer}
    options |= {"logit_scale": case.logit_scale, "backend": backend.name}
    teacher, targets, ids = (x.to(backend.device) for x in (teacher, targets, ids))
    leaf, logits = output(student.to(backend.device))
    if case.beta is None:
        loss = sad.fused_span_ce(logits, targets, ids, **options)
    else:
        loss = sad.fused_span_kl(logits, teacher, ids, **options, **divergence(case.beta))
    loss.backward(upstream.to(backend.device))
    assert loss.dtype == f32 and leaf.grad.dtype == case.dtype
    assert_close(loss, exact, case.atol, case.rtol, ERROR[f32], case.rms)
    assert_close(leaf.grad, exact_leaf.grad, *(case.gradient or (case.atol, case.rtol)), ERROR[case.dtype], case.rms)


@on_backends(LIGER_LINEAR, TRL_LINEAR)
def test_hidden_states(backend, case: LinearCase):
    """`fused_linear_span_kl`, and `fused_linear_topk_span_kl` with alpha = 0 for the cross-entropy of a mixed loss."""
    shape, vocab = leading(case.shape, backend), case.shape[-1]
    make = torch.rand if case.uniform else torch.randn
    student, teacher = (
        [case.scalar * make(*shape, size), make(vocab, size), *([make(vocab)] * case.bias)] for size in case.hidden
    )
    student, teacher = ([x.to(case.dtype) for x in side] for side in (student, teacher))
    targets, ids = torch.randint(0, vocab, shape), span_ids(shape, case.ignored)
    hard, soft = case.weights

    exact_leaves = [x.double().requires_grad_() for x in student]
    student_logits, teacher_logits = (
        x[0] @ x[1].T + (x[2] if case.bias else 0.0) for x in (exact_leaves, [x.double() for x in teacher])
    )
    rows = soft * divergences(student_logits / case.temperature, teacher_logits / case.temperature, case.beta)
    exact = reduced(rows + hard * cross_entropies(student_logits, targets), ids, "mean")
    exact.backward()

    leaves = [x.to(backend.device).requires_grad_() for x in student]
    teacher = [x.to(backend.device) for x in teacher]
    targets, ids = targets.to(backend.device), ids.to(backend.device)
    options = {"student_bias": leaves[2]} if case.bias else {}
    options |= {"backend": backend.name, "chunk_bytes": case.chunk_rows and case.chunk_rows * 2 * 4 * vocab}
    loss = 0.0
    if soft:
        divergence_options = {"temperature": case.temperature, **divergence(case.beta), **options}
        divergence_options["teacher_bias"] = teacher[2] if case.bias else None
        loss = soft * sad.fused_linear_span_kl(*leaves[:2], *teacher[:2], ids, **divergence_options)
    if hard:
        loss = loss + hard * cross_entropy_from_hidden_states(*leaves[:2], targets, ids, **options)
    loss.backward()
    assert_close(loss, exact, case.atol, case.rtol, LINEAR_ERROR[f32])
    for leaf, exact_leaf in zip(leaves, exact_leaves):
        assert_close(leaf.grad, exact_leaf.grad, case.atol, case.rtol, LINEAR_ERROR[case.dtype])


def cross_entropy_from_hidden_states(hidden: Tensor, weight: Tensor, targets: Tensor, ids: Tensor, **options) -> Tensor:
    logprobs = torch.zeros(*ids.shape, 1, device=ids.device)
    absent = torch.full_like(logprobs, -1, dtype=torch.int64)
    return sad.fused_linear_topk_span_kl(hidden, weight, logprobs, absent, ids, target_ids=targets, alpha=0.0, **options)


@on_backends(CCE)
def test_cross_entropy_from_hidden_states(backend, case: HeadCase):
    """The student's rows are in 4 sequences, and some rows of the head equal hidden states."""
    shape = 4, 2 if backend.name in ON_HOST else case.rows // 4
    hidden = (torch.randn(*shape, case.hidden) / case.hidden**0.5).to(case.dtype)
    weight, bias = torch.randn(case.vocab, case.hidden).to(case.dtype), (0.02 * torch.randn(case.vocab)).to(case.dtype)
    equal = math.prod(shape) // 2
    weight[:equal] = hidden.view(-1, case.hidden)[:equal]
    student = [hidden, weight, *([bias] * case.bias)]
    targets, ids = torch.randint(0, case.vocab, shape), span_ids(shape, case.ignored)
    upstream = torch.tensor(LOSS_SCALE[case.dtype])
    if case.reduction != "mean":  # their sum is divided by the number of valid targets, and their mean of "none" by all rows
        upstream = upstream / (math.prod(shape) if case.reduction == "none" else int((ids > 0).sum()))
        upstream = upstream.expand(shape if case.reduction == "none" else ())

    exact_leaves = [x.double().requires_grad_() for x in student]
    logits = exact_leaves[0] @ exact_leaves[1].T + (exact_leaves[2] if case.bias else 0.0)
    if case.softcap:
        logits = case.softcap * torch.tanh(logits / case.softcap)
    rows, of_row = cross_entropies(logits, targets), ids
    if case.shift:
        rows = torch.nn.functional.pad(cross_entropies(logits[:, :-1], targets[:, 1:]), (0, 1))
        of_row = torch.nn.functional.pad(ids[:, 1:], (0, 1))
    exact = reduced(rows, of_row, case.reduction)
    exact.backward(upstream.double())

    leaves = [x.to(backend.device).requires_grad_() for x in student]
    options = {"logit_softcap": case.softcap, "shift": case.shift, "reduction": case.reduction, "backend": backend.name}
    options |= {"student_bias": leaves[2]} if case.bias else {}
    loss = cross_entropy_from_hidden_states(*leaves[:2], targets.to(backend.device), ids.to(backend.device), **options)
    loss.backward(upstream.to(backend.device))
    assert_close(loss, exact, case.atol, 0.0, ERROR[f32])
    for leaf, exact_leaf in zip(leaves, exact_leaves):
        got, wanted = (x.grad.cpu().double() / LOSS_SCALE[case.dtype] for x in (leaf, exact_leaf))
        assert_close(got, wanted, case.atol, 0.0, LINEAR_ERROR[case.dtype])


@pytest.mark.parametrize(("dtype", "beta", "tolerance"), LIGER_UNDERFLOW, ids=str)
def test_probabilities_that_underflow(backend, dtype, beta, tolerance):
    """Probabilities that are normal, subnormal and 0 in float32 on either side (Liger)."""
    powers = torch.tensor([0.0, -1.0, -2.0, -86.0, -87.5, -89.0, -96.0, -103.0, -104.0, -120.0, -200.0])
    student = powers.log_softmax(-1).to(dtype).repeat(3, 1)
    teacher = (powers.roll(1) + 0.5).log_softmax(-1).to(dtype).repeat(3, 1)
    ids = torch.tensor([1, -100, 2])
    upstream = 1.0 if dtype == bf16 else 0.7  # a bfloat16 gradient that is stored and then scaled by 0.7 is rounded twice
    exact_leaf = student.double().requires_grad_()
    exact = reduced(divergences(exact_leaf, teacher.double(), beta), ids, "mean")
    (upstream * exact).backward()
    leaf, logits = output(student.to(backend.device))
    given = logits, teacher.to(backend.device), ids.to(backend.device)
    loss = sad.fused_span_kl(*given, backend=backend.name, **divergence(beta))
    (upstream * loss).backward()
    assert_close(loss, exact, tolerance, tolerance, UNDERFLOW_ERROR[f32])
    assert_close(leaf.grad, exact_leaf.grad, tolerance, tolerance, UNDERFLOW_ERROR[dtype])
    assert (leaf.grad[1] == 0).all()


def point_masses() -> tuple[Tensor, Tensor]:
    """Speculators: logits of +30 and -30; student and teacher agree in the first row and differ in the second."""
    student = torch.full((2, 512), -30.0)
    student[:, 0] = 30.0
    teacher = student.clone()
    teacher[1] = teacher[1].roll(7)
    return student, teacher


def two_columns() -> tuple[Tensor, Tensor]:
    """TRL: probabilities of 0.1 and 0.9, and reversed."""
    student = torch.tensor([[0.1, 0.9]]).log()
    return student, student.flip(-1)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("make", [point_masses, two_columns])
def test_opposite_distributions(backend, make, beta):
    student, teacher = make()
    ids = torch.ones(len(student), dtype=torch.int64)
    exact_leaf = student.double().requires_grad_()
    exact = divergences(exact_leaf, teacher.double(), beta)
    exact.sum().backward()
    leaf, logits = output(student.to(backend.device))
    given = logits, teacher.to(backend.device), ids.to(backend.device)
    loss = sad.fused_span_kl(*given, reduction="none", backend=backend.name, **divergence(beta))
    loss.sum().backward()
    assert_close(loss, exact, 5e-6, 0.0, ERROR[f32])  # TRL compares 5 decimals
    assert_close(leaf.grad, exact_leaf.grad, 1e-3, 1e-2, ERROR[f32])


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_bfloat16_gradient_of_a_student_near_its_teacher(backend, beta):
    """Speculators allows an error of 2 % of the gradient's norm. A softmax in bfloat16 exceeds it: q - p is small."""
    rows = 2 if backend.name in ON_HOST else 8
    teacher = (2 * torch.randn(rows, 4096)).bfloat16()
    student = (teacher.float() + 0.1 * torch.randn(rows, 4096)).bfloat16()
    exact_leaf = student.double().requires_grad_()
    divergences(exact_leaf, teacher.double(), beta).sum().backward()
    leaf, logits = output(student.to(backend.device))
    given = logits, teacher.to(backend.device), torch.ones(rows, dtype=torch.int64, device=backend.device)
    sad.fused_span_kl(*given, reduction="sum", backend=backend.name, **divergence(beta)).backward()
    assert (leaf.grad.cpu().double() - exact_leaf.grad).norm() < 0.02 * exact_leaf.grad.norm()


def test_top_1_of_a_ragged_batch(backend):
    """TRL: completions of 1 and 3 tokens with the teacher's best log-probability; padding has -inf and no span."""
    logprobs = torch.tensor([[-2.3, -torch.inf, -torch.inf], [-1.1, -0.4, -3.0]])[..., None]
    columns, ids = torch.randint(0, 5, (2, 3, 1)), torch.tensor([[1, -100, -100], [1, 2, 2]])
    student = torch.randn(2, 3, 5)
    exact_leaf, kept = student.double().requires_grad_(), ids > 0
    log_q = exact_leaf.log_softmax(-1).gather(-1, columns)[kept]
    log_p = logprobs.double()[kept]
    terms = log_p.exp() * (log_p - log_q) - log_p.expm1() * ((-log_p.expm1()).log() - (-log_q.expm1()).log())
    terms.mean().backward()
    leaf, logits = output(student.to(backend.device))
    given = (x.to(backend.device) for x in (logprobs, columns, ids))
    loss = sad.fused_topk_span_kl(logits, *given, backend=backend.name)
    loss.backward()
    assert_close(loss, terms.mean(), 1e-6, 1e-5, ERROR[f32])
    assert_close(leaf.grad, exact_leaf.grad, 1e-6, 1e-5, ERROR[f32])


@pytest.mark.parametrize("vocab", [512, 4096])
def test_teacher_of_probabilities(backend, vocab):
    """Liger, test/ops/test_fused_linear_kl_div.py: T = 1.7 divides the student's logits only, and two rows are ignored.

    The teacher's probabilities are those of all columns: k = V.
    """
    if backend.name in ON_HOST and vocab > 512:
        pytest.skip("interpreted and emulated kernels take seconds for k = 4096")
    rows = 4 if backend.name in ON_HOST else 32
    student, logprobs = torch.randn(rows, vocab), torch.randn(rows, vocab).log_softmax(-1)
    ids = torch.ones(rows, dtype=torch.int64)
    ids[:2] = -100
    exact_leaf = student.double().requires_grad_()
    exact = reduced(divergences(exact_leaf / 1.7, logprobs.double(), 0.0), ids, "mean", rows)
    exact.backward()
    leaf, logits = output(student.to(backend.device))
    given = (x.to(backend.device) for x in (logprobs, torch.arange(vocab).expand(rows, vocab), ids))
    loss = sad.fused_topk_span_kl(logits, *given, temperature=1.7, normalizer=rows, backend=backend.name)
    loss.backward()
    assert_close(loss, exact, 1e-6, 1e-5, ERROR[f32])
    assert_close(leaf.grad, exact_leaf.grad, 1e-6, 1e-5, ERROR[f32])
