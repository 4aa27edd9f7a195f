"""The span KL from hidden states against the same on logits, in float64 and by autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sad
from sadkernels.ops import linear_chunks

V, H_S, H_T = 203, 24, 40


class Problem:
    """Hidden states of both sides, heads with biases, and labels; `leaves` are what receives gradients."""

    def __init__(self, shape=(4, 9), dtype=torch.float32, vocab=(V, V), supervised: float = 0.6, device="cpu") -> None:
        def normal(*size: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*size) * scale).to(dtype).to(device)

        self.leaves = [x.requires_grad_() for x in (normal(*shape, H_S), normal(vocab[0], H_S, scale=0.4), normal(vocab[0]))]
        self.teacher = normal(*shape, H_T), normal(vocab[1], H_T, scale=0.3), normal(vocab[1])
        self.ids = torch.randint(1, 3, shape, device=device) * (torch.rand(shape, device=device) < supervised)

    def linear(self, backend: str = "auto", **options):
        hidden, weight, bias = self.leaves
        t_hidden, t_weight, t_bias = self.teacher
        biases = {"student_bias": bias, "teacher_bias": t_bias}
        given = (hidden, weight, t_hidden, t_weight, self.ids)
        return sad.fused_linear_span_kl(*given, **biases, backend=backend, **options)

    def exact(self, upstream: float | Tensor = 1.0, **options) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradients in float64, from whole logits."""
        hidden, weight, bias = (x.detach().double().requires_grad_() for x in self.leaves)
        t_hidden, t_weight, t_bias = (x.double() for x in self.teacher)
        logits = hidden @ weight.T + bias, t_hidden @ t_weight.T + t_bias
        loss = sad.fused_span_kl(*logits, self.ids, backend="reference", **options)
        loss.backward(torch.as_tensor(upstream, dtype=loss.dtype, device=loss.device).expand(loss.shape))
        return loss.detach(), [x.grad for x in (hidden, weight, bias)]

    def gradients(self, loss: Tensor, upstream: float | Tensor = 1.0) -> list[Tensor]:
        for leaf in self.leaves:
            leaf.grad = None
        loss.backward(torch.as_tensor(upstream, dtype=loss.dtype, device=loss.device).expand(loss.shape))
        return [leaf.grad for leaf in self.leaves]


def assert_close(got: tuple[Tensor, list[Tensor]], exact: tuple[Tensor, list[Tensor]], dtype=torch.float32) -> None:
    """To the rounding of logits in `dtype`, relative to the largest entry."""
    tolerance = {torch.float64: 1e-11, torch.float32: 5e-6, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    torch.testing.assert_close(got[0].double(), exact[0], rtol=tolerance, atol=tolerance * float(exact[0].abs().max()))
    for g, e in zip(got[1], exact[1]):
        assert g.dtype == dtype
        torch.testing.assert_close(g.double(), e, rtol=0, atol=tolerance * max(float(e.abs().max()), 1e-3))


OPTIONS = [
    {},
    {"reduction": "sum", "lambda_reason": 0.5, "lambda_act": 2.0},
    {"reduction": "span_mean", "temperature": 2.0},
    {"reduction": "none"},
    {"shift": True},
    {"divergence": "reverse_kl", "normalizer": 7},
    {"divergence": "jsd", "beta": 0.3, "logit_softcap": (15.0, 20.0), "logit_scale": 0.7},
    {"vocab_size": V - 20},
    {"lambda_reason": 0.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(backend, options):
    problem = Problem(device=backend.device)
    upstream = torch.rand(problem.ids.shape, device=backend.device) if options.get("reduction") == "none" else 3.0
    loss = problem.linear(backend.name, chunk_bytes=7 * 8 * V, **options)  # chunks of 7 rows, the last one shorter
    got = loss.detach(), problem.gradients(loss, upstream)
    assert_close(got, problem.exact(upstream, **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtypes(backend, dtype):
    problem = Problem(dtype=dtype, device=backend.device)
    loss = problem.linear(backend.name, chunk_bytes=5 * 4 * V)
    assert loss.dtype == torch.float32
    assert_close((loss.detach(), problem.gradients(loss)), problem.exact(), dtype)


def test_float64():
    problem = Problem(dtype=torch.float64)
    loss = problem.linear("reference")
    assert_close((loss.detach(), problem.gradients(loss)), problem.exact(), torch.float64)


def test_small_gradients_of_float16_survive():
    """What a loss scale is for: a mean over a million tokens has gradients far below the range of float16."""
    problem = Problem(dtype=torch.float16)
    got = problem.gradients(problem.linear(normalizer=1e6), upstream=2.0**16)
    assert_close(
        (torch.zeros(()), got),
        (torch.zeros((), dtype=torch.double), problem.exact(2.0**16, normalizer=1e6)[1]),
        torch.float16,
    )


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_chunks_do_not_change_the_loss(rows):
    problem = Problem()
    whole = problem.linear()
    parts = problem.linear(chunk_bytes=rows * 8 * V)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)
    assert_close((parts.detach(), problem.gradients(parts)), problem.exact())


def test_different_vocabularies():
    """The surplus of the student's head gets a gradient of exactly 0."""
    problem = Problem(vocab=(V + 5, V))
    got = problem.gradients(problem.linear())
    assert_close((torch.zeros(()), got), (torch.zeros((), dtype=torch.double), problem.exact()[1]))
    assert not got[1][V:].any() and not got[2][V:].any()


def test_rows_by_number(backend):
    """Whoever knows the supervised rows names them; others among them change nothing."""
    problem = Problem(device=backend.device)
    index = (problem.ids > 0).flatten().nonzero().squeeze(-1)
    extra = (problem.ids == 0).flatten().nonzero().squeeze(-1)[:2]
    expected = problem.linear(backend.name)
    for rows in (index, torch.cat([index.flip(0), extra])):
        loss = problem.linear(backend.name, rows=rows)
        torch.testing.assert_close(loss, expected)
        assert_close((loss.detach(), problem.gradients(loss)), problem.exact())


def test_statistics_are_those_of_the_logits(backend):
    problem = Problem(device=backend.device)
    _, stats = problem.linear(backend.name, return_stats=True, chunk_bytes=5 * 8 * V)
    (hidden, weight, bias), (t_hidden, t_weight, t_bias) = (x.detach() for x in problem.leaves), problem.teacher
    logits = hidden @ weight.T + bias, t_hidden @ t_weight.T + t_bias
    _, expected = sad.fused_span_kl(*logits, problem.ids, return_stats=True, backend="reference")
    for got, exact in zip(stats, expected):
        torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-5)


def test_nothing_supervised(backend):
    problem = Problem(supervised=0.0, device=backend.device)
    loss, stats = problem.linear(backend.name, return_stats=True)
    assert loss == 0 and stats.reason.tokens == stats.act.tokens == 0
    assert not any(g.any() for g in problem.gradients(loss))


def test_unsupervised_rows_are_not_read():
    problem = Problem()
    with torch.no_grad():
        problem.leaves[0][problem.ids == 0] = torch.nan
    problem.teacher[0][problem.ids == 0] = torch.inf
    gradients = problem.gradients(problem.linear())
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0][problem.ids == 0].any()


def test_a_frozen_head_costs_no_gradient(monkeypatch):
    problem = Problem()
    problem.leaves[1].requires_grad_(False)
    problem.leaves[2].requires_grad_(False)
    made = []
    monkeypatch.setattr(linear_chunks, "_add_product", lambda *_: made.append("of the weight"))
    problem.linear().backward()
    torch.testing.assert_close(problem.leaves[0].grad.double(), problem.exact()[1][0], rtol=1e-5, atol=1e-6)
    assert made == [] and problem.leaves[1].grad is None and problem.leaves[2].grad is None


def test_tied_embeddings():
    """One parameter embeds and projects: both gradients arrive."""
    weight = torch.randn(V, H_S, requires_grad=True)
    tokens, problem = torch.randint(0, V, (4, 9)), Problem()
    t_hidden, t_weight, _ = problem.teacher
    sad.fused_linear_span_kl(weight[tokens], weight, t_hidden, t_weight, problem.ids).backward()
    double = weight.detach().double().requires_grad_()
    logits = double[tokens] @ double.T, t_hidden.double() @ t_weight.double().T
    sad.fused_span_kl(*logits, problem.ids, backend="reference").backward()
    torch.testing.assert_close(weight.grad.double(), double.grad, rtol=1e-4, atol=1e-6)


def test_autocast():
    """Under autocast the products are bfloat16's, and gradients arrive in float32."""
    problem = Problem()
    with torch.autocast("cpu", torch.bfloat16):
        loss = problem.linear()
    gradients = problem.gradients(loss)
    exact_loss, exact = problem.exact()
    torch.testing.assert_close(loss.detach().double(), exact_loss, rtol=2e-2, atol=0)
    for g, e in zip(gradients, exact):
        assert g.dtype == torch.float32
        torch.testing.assert_close(g.double(), e, rtol=0, atol=5e-2 * float(e.abs().max()))


def test_two_backwards():
    problem = Problem()
    loss = problem.linear()
    loss.backward(retain_graph=True)
    once = [leaf.grad.clone() for leaf in problem.leaves]
    loss.backward(torch.tensor(2.0))
    for leaf, g in zip(problem.leaves, once):
        torch.testing.assert_close(leaf.grad, 3 * g)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_without_a_break(reduction):
    torch.compiler.reset()
    problem = Problem()
    compiled = torch.compile(lambda: problem.linear(reduction=reduction).sum(), fullgraph=True, backend="aot_eager")
    loss = compiled()
    assert_close(
        (loss.detach(), problem.gradients(loss)), (lambda e: (e[0].sum(), e[1]))(problem.exact(reduction=reduction))
    )


def test_no_buffer_of_all_rows():
    """Nothing that is allocated has as many elements as half of the rows' logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    problem = Problem(shape=(200,), supervised=1.0)
    weights = {x.untyped_storage().data_ptr() for x in (problem.leaves[1], problem.teacher[1])}  # transposed, views of these
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in torch.utils._pytree.tree_leaves(out):
                if isinstance(x, Tensor) and x.shape[-1:] == (V,) and x.untyped_storage().data_ptr() not in weights:
                    largest = max(largest, x.numel())
            return out

    with Watch():
        problem.linear(chunk_bytes=8 * 10 * V).backward()
    assert 0 < largest <= 10 * V


WRONG = {
    "student_weight": (
        lambda p: {"student_weight": torch.zeros(V, H_T)},
        ValueError,
        r"student_weight: expected shape \(V, 24\)",
    ),
    "teacher_hidden": (lambda p: {"teacher_hidden": torch.zeros(3, H_T)}, ValueError, "the student's shape except for H"),
    "requires_grad": (lambda p: {"teacher_hidden": p.teacher[0].requires_grad_()}, ValueError, "detach"),
    "dtype": (lambda p: {"student_weight": p.leaves[1].detach().half()}, TypeError, "student_weight: expected the dtype"),
    "bias": (lambda p: {"student_bias": torch.zeros(3)}, ValueError, r"student_bias: expected shape \(203,\)"),
    "rows": (lambda p: {"rows": torch.zeros(3)}, TypeError, "rows: expected int64"),
    "chunk_bytes": (lambda p: {"chunk_bytes": 0}, ValueError, "chunk_bytes: expected a whole number"),
    "vocab_size": (lambda p: {"vocab_size": V + 1}, ValueError, "vocab_size: expected 1 to 203"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    problem = Problem()
    changed, error, message = WRONG[name]
    given = {
        "student_hidden": problem.leaves[0],
        "student_weight": problem.leaves[1],
        "teacher_hidden": problem.teacher[0],
        "teacher_weight": problem.teacher[1],
        "span_ids": problem.ids,
    } | changed(problem)
    with pytest.raises(error, match=message):
        sad.fused_linear_span_kl(**given)
