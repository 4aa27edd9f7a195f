"""Properties of all losses from hidden states, compared with the losses on logits in float64."""

from __future__ import annotations

import pytest
import torch

from sadkernels.ops import head, linear_span_kl, linear_topk_span_kl, products
from tests.sadkernels.linear_cases import Dense, Topk, V, assert_close, assert_gradients_close

both = pytest.mark.parametrize("make", [Dense, Topk])


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtypes(backend, make, dtype):
    problem = make(dtype=dtype, device=backend.device)
    loss = problem.linear(backend.name, chunk_bytes=5 * 4 * V)
    assert loss.dtype == torch.float32
    assert_close((loss.detach(), problem.gradients(loss)), problem.exact(), dtype)


@both
def test_float64(make):
    problem = make(dtype=torch.float64)
    loss = problem.linear("reference")
    assert_close((loss.detach(), problem.gradients(loss)), problem.exact(), torch.float64)


@both
def test_small_gradients_of_float16_survive(make):
    """A mean over a million tokens has gradients below the range of float16; the loss scale keeps them."""
    problem = make(dtype=torch.float16)
    got = problem.gradients(problem.linear(normalizer=1e6), upstream=2.0**16)
    assert_gradients_close(got, problem.exact(2.0**16, normalizer=1e6)[1], torch.float16)


@both
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_chunks_do_not_change_the_loss(make, rows):
    problem = make()
    whole = problem.linear()
    parts = problem.linear(chunk_bytes=rows * 8 * V)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)
    assert_close((parts.detach(), problem.gradients(parts)), problem.exact())


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("supervised", [0.6, 0.0])
def test_uninitialized_memory_does_not_reach_a_gradient(make, dtype, supervised):
    """The first chunk writes the gradient of the weight. Rows beyond `vocab_size` and calls without a chunk give zeros."""
    problem = make(dtype=dtype, supervised=supervised)
    options = {"vocab_size": V - 20} if make is Dense else {}
    torch.use_deterministic_algorithms(True)  # PyTorch then fills fresh memory with NaN
    try:
        got = problem.gradients(problem.linear(chunk_bytes=5 * 8 * V, **options))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_gradients_close(got, problem.exact(**options)[1], dtype)


@pytest.mark.parametrize("biased", [True, False])
def test_projection_of_a_wide_vocabulary(biased):
    """A CPU projects slices of columns: here two whole slices and a remainder."""
    hidden, weight, bias = torch.randn(5, 24), torch.randn(1100, 24), torch.randn(1100)
    logits = torch.full((5, 1100), torch.nan)
    head.Head(hidden, weight, bias if biased else None).project(hidden, logits)
    exact = hidden.double() @ weight.double().T + (bias if biased else 0)
    torch.testing.assert_close(logits.double(), exact, rtol=0, atol=1e-5)


@both
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_rows_argument(make, reduction):
    """`rows` lists the supervised rows in any order; additional rows change nothing."""
    problem = make()
    index = (problem.ids > 0).flatten().nonzero().squeeze(-1)
    extra = (problem.ids == 0).flatten().nonzero().squeeze(-1)[:2]
    exact = problem.exact(reduction=reduction)
    for rows in (index, torch.cat([index.flip(0), extra])):
        loss = problem.linear(rows=rows, reduction=reduction, chunk_bytes=5 * 8 * V)
        assert_close((loss.detach(), problem.gradients(loss)), exact)


@both
def test_statistics_equal_those_on_logits(backend, make):
    problem = make(device=backend.device)
    _, stats = problem.linear(backend.name, return_stats=True, chunk_bytes=5 * 8 * V)
    hidden, weight, bias = (x.detach() for x in problem.leaves)
    _, expected = problem.on_logits((hidden @ weight.T + bias).double(), return_stats=True)
    for got, exact in zip(stats, expected):
        for ours, theirs in zip(got, exact):
            torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-5)


@both
def test_nothing_supervised(backend, make):
    problem = make(supervised=0.0, device=backend.device)
    loss, stats = problem.linear(backend.name, return_stats=True)
    assert loss == 0 and stats.reason.tokens == stats.act.tokens == 0
    assert not any(g.any() for g in problem.gradients(loss))


@both
def test_unsupervised_rows_are_not_read(make):
    problem = make()
    with torch.no_grad():
        problem.leaves[0][problem.ids == 0] = torch.nan
    problem.poison(problem.ids == 0)
    gradients = problem.gradients(problem.linear())
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[0][problem.ids == 0].any()


@both
def test_a_frozen_head_needs_no_product(make, monkeypatch):
    problem = make()
    problem.leaves[1].requires_grad_(False)
    problem.leaves[2].requires_grad_(False)
    made = []
    monkeypatch.setattr(products, "add_product", lambda *_, **__: made.append("of the weight"))
    problem.linear().backward()
    torch.testing.assert_close(problem.leaves[0].grad.double(), problem.exact()[1][0], rtol=1e-5, atol=1e-6)
    assert made == [] and problem.leaves[1].grad is None and problem.leaves[2].grad is None


@both
def test_autocast(make):
    """Under autocast the matrix products are in bfloat16, and the gradients are float32."""
    problem = make()
    with torch.autocast("cpu", torch.bfloat16):
        loss = problem.linear()
    gradients = problem.gradients(loss)
    exact_loss, exact = problem.exact()
    torch.testing.assert_close(loss.detach().double(), exact_loss, rtol=2e-2, atol=0)
    for g, e in zip(gradients, exact):
        assert g.dtype == torch.float32
        torch.testing.assert_close(g.double(), e, rtol=0, atol=5e-2 * float(e.abs().max()))


@both
def test_two_backwards(make):
    problem = make()
    loss = problem.linear()
    loss.backward(retain_graph=True)
    once = [leaf.grad.clone() for leaf in problem.leaves]
    loss.backward(torch.tensor(2.0))
    for leaf, g in zip(problem.leaves, once):
        torch.testing.assert_close(leaf.grad, 3 * g)


@both
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_to_one_graph(make, reduction):
    torch.compiler.reset()
    problem = make()
    compiled = torch.compile(lambda: problem.linear(reduction=reduction).sum(), fullgraph=True, backend="aot_eager")
    loss = compiled()
    exact_loss, exact = problem.exact(reduction=reduction)
    assert_close((loss.detach(), problem.gradients(loss)), (exact_loss.sum(), exact))


LOSS_OPTIONS = (1.0, 0.5, 0.1, "mean", False, True, False, "cpu")
DENSE_OPTIONS = (*LOSS_OPTIONS, V, 2.0, "jsd", 0.4, 1.0, 0.9, None, 30.0)
TOPK_OPTIONS = (*LOSS_OPTIONS, V, 2.0, "forward_kl", 0.5, 0.9, 1.0, 30.0, None, "bucket", 0.6)


@both
def test_opcheck(make):
    """Schema, fake tensors and AOT dispatch of every op."""
    problem, ops = make(), torch.ops.sad
    leaves = [leaf.detach() for leaf in problem.leaves]
    if make is Dense:
        op, inputs, options = linear_span_kl.OP, (*leaves, *problem.teacher, problem.ids, *[None] * 4), DENSE_OPTIONS
    else:
        targets = (*problem.teacher, problem.mixture["target_ids"])
        op, inputs, options = linear_topk_span_kl.OP, (*leaves, *targets, problem.ids, *[None] * 4), TOPK_OPTIONS
    name, settings = op.name, (*options, 5 * 8 * V)
    torch.library.opcheck(getattr(ops, name).default, (*inputs, *settings))
    loss, _, _, state = getattr(ops, name)(*inputs, *settings)
    for wants in ([True, True, True], [True, False, False]):
        torch.library.opcheck(getattr(ops, f"{name}_with_grad").default, (*inputs, *settings, wants))
        of_backward = (*inputs, state, torch.ones_like(loss), *settings, wants)
        torch.library.opcheck(getattr(ops, f"{name}_backward").default, of_backward)


@both
def test_no_buffer_of_all_rows(make):
    """The largest allocation, inside the op too, is at most a quarter of the logits of all rows."""
    problem = make(shape=(400,), supervised=1.0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        problem.linear(chunk_bytes=8 * 10 * V).backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 10 * V * 4 <= largest <= 400 * V * 4 / 4
