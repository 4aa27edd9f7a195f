"""The span KL from hidden states, compared with the span KL on logits. test_linear_losses.py tests the common properties."""

from __future__ import annotations

import pytest
import torch

import sad
from tests.sadkernels.linear_cases import H_S, H_T, Dense, V, assert_close, assert_gradients_close

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
    problem = Dense(device=backend.device)
    upstream = torch.rand(problem.ids.shape, device=backend.device) if options.get("reduction") == "none" else 3.0
    loss = problem.linear(backend.name, chunk_bytes=7 * 8 * V, **options)  # chunks of 7 rows, the last one shorter
    got = loss.detach(), problem.gradients(loss, upstream)
    assert_close(got, problem.exact(upstream, **options))


def test_different_vocabularies():
    """Head rows beyond the smaller vocabulary get a gradient of exactly 0."""
    problem = Dense(vocab=(V + 5, V))
    got = problem.gradients(problem.linear())
    assert_gradients_close(got, problem.exact()[1])
    assert not got[1][V:].any() and not got[2][V:].any()


def test_tied_embeddings():
    """One parameter is embedding and head: its gradient is the sum of both."""
    weight = torch.randn(V, H_S, requires_grad=True)
    tokens, problem = torch.randint(0, V, (4, 9)), Dense()
    t_hidden, t_weight, _ = problem.teacher
    sad.fused_linear_span_kl(weight[tokens], weight, t_hidden, t_weight, problem.ids).backward()
    double = weight.detach().double().requires_grad_()
    logits = double[tokens] @ double.T, t_hidden.double() @ t_weight.double().T
    sad.fused_span_kl(*logits, problem.ids, backend="reference").backward()
    torch.testing.assert_close(weight.grad.double(), double.grad, rtol=1e-4, atol=1e-6)


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
    "chunk_bytes": (lambda p: {"chunk_bytes": 0}, ValueError, "chunk_bytes: expected an integer"),
    "vocab_size": (lambda p: {"vocab_size": V + 1}, ValueError, "vocab_size: expected 1 to 203"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    problem = Dense()
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
