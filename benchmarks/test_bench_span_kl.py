"""Times small cases with pytest-benchmark, to compare two commits: `pytest benchmarks/test_bench_span_kl.py`.

A plain `pytest` does not collect this file, because its testpaths is tests/.
"""

from __future__ import annotations

import pytest
import torch

from sadkernels.bench.cases import Case
from sadkernels.bench.measure import TOLERANCE
from sadkernels.bench.problem import make_problem
from sadkernels.bench.providers import PROVIDERS

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = [
    Case(128, 50257, "float32", 2 / 3),
    Case(128, 50257, "bfloat16", 0.2),
    Case(2, 151936, "float32", 1.0),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("provider", [p for p in PROVIDERS["span_kl"] if p.slow is None], ids=lambda p: p.name)
def test_forward_and_backward(benchmark, provider, case):
    if reason := provider.why_not(case, DEVICE):
        pytest.skip(reason)
    problem = make_problem(case, DEVICE)

    def call() -> torch.Tensor:
        loss = provider.loss(problem)
        problem.backward(loss)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return loss.detach()

    loss = call()
    assert problem.error(loss, problem.reference()) < TOLERANCE[case.dtype]  # time only correct results
    benchmark.pedantic(call, setup=problem.reset, rounds=7, warmup_rounds=1)
