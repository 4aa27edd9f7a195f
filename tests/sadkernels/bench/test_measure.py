"""The harness times only what is right, reports who could not run, and counts bytes and memory as it says."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

from sadkernels.bench import measure as measure_module
from sadkernels.bench import memory, peers
from sadkernels.bench import run as run_module
from sadkernels.bench.bandwidth import copy_bandwidth, moved_bytes
from sadkernels.bench.cases import CPU, Case, choose
from sadkernels.bench.measure import Effort, measure
from sadkernels.bench.problem import make
from sadkernels.bench.providers import BASELINE, NAMES, PROVIDERS, Provider
from sadkernels.bench.record import FAILED, FIELDS, NO_MEMORY, NOT_RUN, OK, WRONG
from sadkernels.bench.run import broken, run
from sadkernels.native import extension
from sadkernels.native.cpu import span_kl as cpu_span_kl

DEVICE = torch.device("cpu")
LOGITS = Case(12, 40, "float32", 0.5)
HIDDEN = Case(12, 40, "float32", 0.5, (6, 10))
LISTED, LISTED_HIDDEN = LOGITS._replace(listed=5), HIDDEN._replace(listed=5)
ALL = pytest.mark.parametrize("case", [LOGITS, HIDDEN, LISTED, LISTED_HIDDEN], ids=lambda case: case.op)
ONCE = Effort(0.0, 2, 2)


@pytest.fixture(autouse=True)
def small_copy(monkeypatch):
    monkeypatch.setattr(run_module, "copy_bandwidth", lambda device: copy_bandwidth(device, 1 << 16))


def pytorch(case: Case) -> Provider:
    return next(provider for provider in PROVIDERS[case.op] if provider.name == BASELINE)


def measured(case: Case, *providers: Provider) -> dict[str, dict]:
    rows = measure(case, DEVICE, [pytorch(case), *providers], 1e9, ONCE)
    assert all(set(row) <= set(FIELDS) for row in rows)
    return {row["provider"]: row for row in rows}


def test_a_quick_call_on_a_cpu_runs_once_before_it_is_timed(monkeypatch):
    """Or it would pay for what the provider before it left to the system."""
    calls = []
    counted = pytorch(LOGITS)._replace(name="counted", loss=lambda p: calls.append(0) or pytorch(LOGITS).loss(p))
    made = {}
    for quick in (0.0, 1e9):
        monkeypatch.setattr(measure_module, "_QUICK_CALL", quick)
        calls.clear()
        assert measured(LOGITS, counted)["counted"]["rounds"] == ONCE.least
        made[quick] = len(calls)
    assert made[1e9] - made[0.0] == ONCE.least


def scales_the_loss(problem):
    return 1.001 * pytorch(problem.case).loss(problem)


def drops_a_row(problem):
    problem.ids[problem.supervised[-1]] = 0  # the count stays: only one row's gradient and a little of the loss are lost
    loss = pytorch(problem.case).loss(problem) * ((len(problem.supervised) - 1) / len(problem.supervised))
    problem.ids[problem.supervised[-1]] = 1
    return loss


def pulls_on_an_unsupervised_row(problem):
    return pytorch(problem.case).loss(problem) + 0.01 * (problem.leaves[0][problem.unsupervised[-1]] * 1.0).sum().sub(0)


def is_nan(problem):
    return pytorch(problem.case).loss(problem) * math.nan


@ALL
@pytest.mark.parametrize("wrong", [scales_the_loss, drops_a_row, pulls_on_an_unsupervised_row, is_nan])
def test_who_is_wrong_is_not_timed(case, wrong):
    rows = measured(case, Provider("liar", wrong))
    assert rows["liar"]["status"] == WRONG and "allowed" in rows["liar"]["reason"]
    assert "ms" not in rows["liar"] and "times_pytorch" not in rows["liar"]
    assert rows[BASELINE]["status"] == OK and rows[BASELINE]["ms"] > 0 and rows[BASELINE]["times_pytorch"] == 1


def test_a_right_loss_with_a_wrong_gradient_is_wrong():
    def loss(problem):
        right = pytorch(problem.case).loss(problem)
        return right.detach() + 0.5 * (right - right.detach())

    assert measured(LOGITS, Provider("liar", loss))["liar"]["status"] == WRONG


def test_failures_and_lack_of_memory_are_results():
    def raises(error):
        def loss(problem):
            raise error

        return loss

    def no_such_case(case, device):
        return "no such size"

    rows = measured(
        LOGITS,
        Provider("fails", raises(RuntimeError("first line\nsecond"))),
        Provider("greedy", raises(torch.OutOfMemoryError("asked for too much"))),
        Provider("picky", pytorch(LOGITS).loss, no_such_case),
        Provider("huge", pytorch(LOGITS).loss, logits_buffers=1e12),
    )
    assert (rows["fails"]["status"], rows["fails"]["reason"]) == (FAILED, "RuntimeError: first line")
    assert rows["greedy"]["status"] == NO_MEMORY
    assert (rows["picky"]["status"], rows["picky"]["reason"]) == (NOT_RUN, "no such size")
    if memory.available() is not None:
        assert rows["huge"]["status"] == NOT_RUN and "GiB are free" in rows["huge"]["reason"]
    assert rows[BASELINE]["status"] == OK


@ALL
def test_every_provider_is_right_or_says_why_not(case):
    (rows,) = run([case], DEVICE, quick=True, effort=ONCE)
    assert [row["provider"] for row in rows] == [provider.name for provider in PROVIDERS[case.op]]
    status = {row["provider"]: row["status"] for row in rows}
    assert {status[name] for name in status if name.startswith(("sad-cpu", "pytorch")) and name != "pytorch-compiled"} == {
        OK
    }
    assert all(row["reason"] and "\n" not in row["reason"] for row in rows if row["status"] != OK)
    if not torch.cuda.is_available():
        assert status["liger"] == status["sad-cuda"] == NOT_RUN
    assert not broken(rows)


def test_small_gradients_in_float16_survive():
    rows = measured(Case(300, 2000, "float16", 1.0))
    assert rows[BASELINE]["status"] == OK, rows[BASELINE]["reason"]


def test_names_choose_providers_and_the_budget_ends_the_run():
    (rows,) = run([LOGITS], DEVICE, only=["sad-reference"], quick=True, effort=ONCE)
    assert [(row["provider"], row["status"]) for row in rows] == [("sad-reference", OK)]
    assert "times_pytorch" not in rows[0]
    groups = list(run([LOGITS, HIDDEN], DEVICE, budget=-1.0))
    assert len(groups) == 2 and {row["status"] for rows in groups for row in rows} == {NOT_RUN}


def test_only_ours_can_be_broken():
    row = {"provider": "sad-cpu", "status": WRONG}
    assert broken([row, {"provider": "liger", "status": WRONG}, {"provider": "sad-cuda", "status": NOT_RUN}]) == [row]


@pytest.mark.parametrize("installed", [True, False])
def test_a_peer_that_cannot_be_imported_says_so(installed, monkeypatch):
    peers._import_error.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    reason = peers._import_error("no_such_peer", "no_such_peer.kernels")
    peers._import_error.cache_clear()
    assert reason == (
        "installed, but no_such_peer.kernels cannot be imported: No module named 'no_such_peer'"
        if installed
        else "not installed"
    )


def test_moved_bytes():
    row = 50257 * 2
    assert moved_bytes(Case(10, 50257, "bfloat16", 0.4)) == 4 * 3 * row + 6 * row
    assert moved_bytes(Case(10, 50257, "float32", 1.0)) == 10 * 3 * 50257 * 4
    assert moved_bytes(Case(10, 50257, "bfloat16", 0.4, listed=64)) == 4 * (2 * row + 64 * 12) + 6 * row
    assert moved_bytes(HIDDEN) is moved_bytes(LISTED_HIDDEN) is None
    assert copy_bandwidth(DEVICE, 1 << 20) > 0


def test_logits_are_restored_after_work_in_place():
    problem = make(LOGITS, DEVICE)
    before = problem.student.detach().clone()
    in_place = next(provider for provider in PROVIDERS[LOGITS.op] if provider.name == "sad-cpu-inplace")
    in_place.loss(problem).backward()
    assert not torch.equal(problem.student.detach(), before)
    problem.reset()
    assert torch.equal(problem.student.detach(), before) and problem.student.grad is None


@pytest.mark.skipif(memory.available() is None, reason="the resident set is read from Linux's /proc")
def test_memory_is_the_peak_and_what_stays():
    size = 64 << 20

    def forward():
        kept = torch.ones(size // 4, requires_grad=True)
        torch.ones(size // 4).sum()  # comes and goes
        return (kept * kept).sum()

    peak, retained = memory.usage(forward, torch.Tensor.backward, DEVICE)
    if peak is None:
        pytest.skip("this container hides the counters")
    # The first holds `kept` and its square at the end of the forward pass, backward makes gradients on top; 10 % for pages.
    assert size * 0.9 < retained < size * 2.2 and peak > size * 1.9


@pytest.mark.skipif(memory.available() is None, reason="the resident set is read from Linux's /proc")
@pytest.mark.skipif(extension.missing("cpu") is not None, reason="needs the extension for CPUs")
def test_memory_that_an_earlier_call_kept_counts_all_the_same():
    size = 64 << 20

    def forward():
        comes_and_goes = cpu_span_kl.new_logits((size // 4,), torch.empty(0)).fill_(2.0)
        return torch.ones(3, requires_grad=True).sum() * float(comes_and_goes[0])

    for _ in range(2):  # the second time the memory is there already
        peak, retained = memory.usage(forward, torch.Tensor.backward, DEVICE)
    if peak is None:
        pytest.skip("this container hides the counters")
    assert peak > size * 0.9 and retained < size * 0.1


def test_the_tables_hold_what_is_promised():
    default = choose("default", "cpu")
    for case in (
        Case(1024, 50257, "float32", 2 / 3),
        Case(1024, 50257, "float32", 0.2),
        Case(1024, 50257, "bfloat16", 2 / 3),
        Case(1024, 50257, "float16", 2 / 3),
        Case(2, 151936, "float32", 1.0),
    ):
        assert case in default
    assert any(case.vocab == 151936 and case.rows > 2 for case in default) and any(case.hidden for case in default)
    full = choose("full", "cuda")
    assert {case.vocab for case in full} == {32000, 50257, 128256, 151936, 262144}
    assert {case.supervised for case in full} >= {1.0, 0.5, 0.2, 0.05}
    assert choose("default", "cpu", "float32")[0] == CPU[0]
    assert len(choose("default", "cpu", "float32")) == len(CPU) - 2  # the headline in three dtypes became one case
    assert {case.op for case in choose("quick", "cpu", listed=True)} == {"topk_span_kl", "linear_topk_span_kl"}
    assert "pytorch" in NAMES and "trl" in NAMES
