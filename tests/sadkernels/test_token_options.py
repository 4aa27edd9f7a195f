"""Observation tokens, weights of tokens and turns, in every loss on every backend.

`test_row_weights.py` tests the weights. Here each loss must be the weighted sum of its values of single tokens, and read no
row without a weight. GPU backends share the code that computes weights with `reference`.
"""

from __future__ import annotations

import math

import pytest
import torch

import sad
from sadkernels.reference.row_weights import row_weights as weights_of
from sadkernels.tokens import Tokens
from tests.sadkernels.conftest import Backend

B, T, V, H, K = 2, 7, 33, 5, 3
IDS = torch.tensor([[1, 0, 2, 2, 1, 3, 3], [3, -100, 1, 2, 3, 2, 3]])
WEIGHTS = torch.tensor([[0.5, 2.0, 3.0, 0.25, 0.0, 1.5, 1.0], [1.0, 1.0, 0.0, 4.0, 1.0, 0.125, 2.5]])
TURNS = torch.tensor([[7, 7, 7, 7, 9, 9, 9], [9, 9, 0, -5, -5, -5, 7]])
LOSSES = ["kl", "topk", "ce", "linear", "linear_topk"]
CASES = {
    "observe": {"lambda_observe": 0.3, "reduction": "mean"},
    "observe by kind": {"lambda_observe": 0.3, "reduction": "span_mean"},
    "weights": {"token_weights": WEIGHTS, "reduction": "mean"},
    "weights by kind": {"token_weights": WEIGHTS, "reduction": "span_mean", "lambda_observe": 0.3},
    "weighted sum": {"token_weights": WEIGHTS, "reduction": "sum"},
    "turns": {"reduction": "turn_mean"},
    "turns by id": {"reduction": "turn_mean", "turn_ids": TURNS, "token_weights": WEIGHTS, "lambda_observe": 2.0},
    "values of weighted tokens": {"token_weights": WEIGHTS, "reduction": "none"},
}


class Problem:
    """Inputs of one loss, and its leaves."""

    def __init__(self, loss: str, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(3)
        rand = lambda *shape: torch.randn(*shape, generator=generator).to(device)  # noqa: E731
        logprobs, columns = rand(B, T, V).log_softmax(-1).topk(K)
        self.loss, self.device, self.targets = loss, device, torch.randint(0, V, (B, T), generator=generator).to(device)
        if loss.startswith("linear"):
            self.leaves, teacher = [rand(B, T, H), rand(V, H)], (rand(B, T, H), rand(V, H))
        else:
            self.leaves, teacher = [rand(B, T, V)], (rand(B, T, V),)
        self.teacher = (logprobs, columns) if "topk" in loss else (self.targets,) if loss == "ce" else teacher
        self.leaves = [x.requires_grad_() for x in self.leaves]

    def __call__(self, backend: str, **options):
        function = {
            "kl": sad.fused_span_kl,
            "topk": sad.fused_topk_span_kl,
            "ce": sad.fused_span_ce,
            "linear": sad.fused_linear_span_kl,
            "linear_topk": sad.fused_linear_topk_span_kl,
        }[self.loss]
        options = {name: x.to(self.device) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
        return function(*self.leaves, *self.teacher, IDS.to(self.device), backend=backend, **options)

    def gradients(self, loss: torch.Tensor) -> list[torch.Tensor]:
        return torch.autograd.grad(loss, self.leaves)


def expected_weights(shift: bool, **options) -> torch.Tensor:
    tokens = Tokens(IDS, options.get("token_weights"), options.get("turn_ids"))
    lambdas = (0.5, 2.0, options.get("lambda_observe", 0.0))
    return weights_of(tokens, lambdas, options["reduction"], shift, False, torch.float32)[2].view(B, T)


@pytest.mark.parametrize("shift", [False, True], ids=["", "shift"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_every_option(name, loss, case, shift):
    check_weighted_sum_of_values(Backend(name, torch.device("cpu")), loss, CASES[case], shift)


@pytest.mark.parametrize("loss", LOSSES)
def test_all_options_together(backend, loss):
    check_weighted_sum_of_values(backend, loss, CASES["turns by id"], shift=True)


def check_weighted_sum_of_values(backend: Backend, loss: str, options: dict, shift: bool) -> None:
    problem = Problem(loss, backend.device)
    weights = expected_weights(shift, **options).to(backend.device)
    values = problem(backend.name, reduction="none", lambda_observe=1.0, shift=shift)
    assert (values.detach() >= 0).all() and ((values != 0) | (weights == 0)).all()
    exact = values * weights
    got = problem(backend.name, lambda_reason=0.5, lambda_act=2.0, shift=shift, **options)
    torch.testing.assert_close(got, exact if options["reduction"] == "none" else exact.sum(), rtol=1e-5, atol=1e-7)
    upstream = torch.linspace(0.5, 2.0, got.numel(), device=got.device).view(got.shape)
    expected = problem.gradients((exact * upstream).sum())
    for gradient, other in zip(problem.gradients((got * upstream).sum()), expected):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", LOSSES)
def test_rows_without_a_weight_are_not_read(backend, loss, reduction):
    """NaN there changes nothing, with statistics too, and the gradient is exactly 0."""
    problem = Problem(loss, backend.device)
    unread = (WEIGHTS == 0) | ~torch.isin(IDS, torch.tensor([1, 2]))
    with torch.no_grad():
        problem.leaves[0][unread.to(backend.device)] = math.nan
    loss, stats = problem(backend.name, token_weights=WEIGHTS, reduction=reduction, return_stats=True)
    student, *others = problem.gradients(loss.sum())
    assert loss.isfinite().all() and (student[unread.to(backend.device)] == 0).all()
    assert all(x.isfinite().all() for x in (student, *others))
    assert [kind.tokens.item() for kind in stats] == [1, 4, 0] and stats.observe.kl_sum == 0
    assert stats.reason.kl_sum.isfinite() and stats.act.kl_sum.isfinite()


@pytest.mark.parametrize("loss", LOSSES)
def test_statistics_of_observations(backend, loss):
    problem = Problem(loss, backend.device)
    values = problem(backend.name, reduction="none", lambda_observe=1.0)
    _, stats = problem(backend.name, lambda_observe=0.3, return_stats=True)
    for kind, part in enumerate(stats, start=1):
        of_kind = (IDS == kind).to(backend.device)
        assert part.tokens == of_kind.sum()
        torch.testing.assert_close(part.kl_sum, values[of_kind].sum(), rtol=1e-5, atol=1e-6)


def test_a_normalizer_is_the_number_of_turns(backend):
    problem, normalizer = Problem("kl", backend.device), torch.tensor(8.0)
    whole = problem(backend.name, reduction="turn_mean")  # 4 turns: two in each row
    part = problem(backend.name, reduction="turn_mean", normalizer=normalizer)
    torch.testing.assert_close(part * 2.0, whole, rtol=1e-6, atol=0)


def test_compiled(backend):
    if backend.device.type == "cpu" and backend.name in ("triton", "cuda"):
        pytest.skip("the interpreter and the emulation run in plain calls only")
    problem, options = Problem("kl", backend.device), CASES["turns by id"]
    compiled = torch.compile(lambda: problem(backend.name, **options), fullgraph=True)
    torch.testing.assert_close(compiled(), problem(backend.name, **options), rtol=0, atol=0)
