"""The top-k KL from hidden states, compared with that on logits. test_linear_losses.py tests the common properties."""

from __future__ import annotations

import pytest
import torch

import sad
from tests.sadkernels.linear_cases import H_S, H_T, Dense, K, Topk, V, assert_close

KL_ALONE = {"target_ids": None, "alpha": 1.0}
OPTIONS = [
    {},
    KL_ALONE | {"reduction": "sum", "lambda_reason": 0.5, "lambda_act": 2.0},
    {"tail": "ignore", "reduction": "span_mean", "temperature": 2.0},
    {"reduction": "none"},
    KL_ALONE | {"shift": True},
    {"shift": True, "alpha": 0.0, "normalizer": 7},
    {"logit_softcap": 15.0, "logit_scale": 0.7},
    {"vocab_size": V - 20},
    {"lambda_reason": 0.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(backend, options):
    problem = Topk(device=backend.device)
    upstream = torch.rand(problem.ids.shape, device=backend.device) if options.get("reduction") == "none" else 3.0
    room = 7 * (4 * V + 48 * K)  # chunks of 7 rows, the last one shorter
    loss = problem.linear(backend.name, chunk_bytes=room, **options)
    got = loss.detach(), problem.gradients(loss, upstream)
    assert_close(got, problem.exact(upstream, **options))


@pytest.mark.parametrize("rows", [False, True])
def test_topk_lists_with_shift(rows):
    """Row t uses top-k list t, and span id and target of token t + 1. The lists cover all rows, or those in `rows`."""
    problem = Topk()
    exact = problem.exact(shift=True)
    index = torch.nn.functional.pad(problem.ids[:, 1:], (0, 1)).flatten().nonzero().squeeze(-1) if rows else None
    loss = problem.linear(shift=True, rows=index)
    assert_close((loss.detach(), problem.gradients(loss)), exact)


def test_the_whole_vocabulary_is_the_dense_loss():
    problem = Dense()
    (hidden, weight, bias), (t_hidden, t_weight, t_bias) = problem.leaves, problem.teacher
    exact = problem.exact(reduction="span_mean", shift=True)
    logprobs, ids = (t_hidden @ t_weight.T + t_bias).log_softmax(-1).topk(V)
    options = {"student_bias": bias, "reduction": "span_mean", "shift": True}
    loss = sad.fused_linear_topk_span_kl(hidden, weight, logprobs, ids, problem.ids, **options)
    assert_close((loss.detach(), problem.gradients(loss)), exact)


WRONG = {
    "student_weight": ({"student_weight": torch.zeros(V, H_T)}, ValueError, r"student_weight: expected shape \(V, 24\)"),
    "student_hidden": ({"student_hidden": torch.zeros(H_S)}, ValueError, "student_hidden: expected shape"),
    "teacher_logprobs": ({"teacher_logprobs": torch.zeros(3, K)}, ValueError, "the student's shape except for k"),
    "lists of rows": ({"rows": torch.arange(5)}, ValueError, r"expected shape \(M, k\), k entries for each of `rows`"),
    "requires_grad": ({"teacher_logprobs": torch.zeros(4, 9, K).requires_grad_()}, ValueError, "detach"),
    "teacher_ids": ({"teacher_ids": torch.zeros(4, 9, K)}, TypeError, "teacher_ids: expected an integer dtype"),
    "target_ids": ({"alpha": 0.5}, ValueError, "target_ids: expected a tensor with alpha < 1"),
    "span_ids": ({"span_ids": torch.zeros(4, dtype=torch.long)}, ValueError, r"span_ids: expected shape \(4, 9\)"),
    "tail": ({"tail": "uniform"}, ValueError, "tail: expected one of 'bucket'"),
    "vocab_size": ({"vocab_size": V + 1}, ValueError, "vocab_size: expected 1 to 203"),
    "chunk_bytes": ({"chunk_bytes": 0}, ValueError, "chunk_bytes: expected an integer"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    problem = Topk()
    changed, error, message = WRONG[name]
    given = {
        "student_hidden": problem.leaves[0],
        "student_weight": problem.leaves[1],
        "teacher_logprobs": problem.teacher[0],
        "teacher_ids": problem.teacher[1],
        "span_ids": problem.ids,
    } | changed
    with pytest.raises(error, match=message):
        sad.fused_linear_topk_span_kl(**given)
