"""The benchmark times only correct providers, reports why others did not run, and counts bytes and memory correctly."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

from sadkernels.bench import measure as measure_module
from sadkernels.bench import peers
from sadkernels.bench.cases import CPU, Case, choose_cases, parse_case
from sadkernels.bench.measure import (
    DeviceLost,
    TimingConfig,
    failed_backends,
    first_missing,
    measure_case,
    measure_cases,
)
from sadkernels.bench.memory import available_bytes, measure_memory
from sadkernels.bench.problem import make_problem
from sadkernels.bench.providers import BASELINE, NAMES, PROVIDERS, Provider
from sadkernels.bench.record import FAILED, FIELDS, NO_MEMORY, NOT_RUN, OK, WRONG
from sadkernels.bench.timing import copy_bandwidth
from sadkernels.native import extension
from sadkernels.native.cpu import span_kl as cpu_span_kl

DEVICE = torch.device("cpu")
LOGITS = Case(12, 40, "float32", 0.5)
HIDDEN = Case(12, 40, "float32", 0.5, (6, 10))
TOPK, TOPK_HIDDEN = LOGITS._replace(k=5), HIDDEN._replace(k=5)
ALL = pytest.mark.parametrize("case", [LOGITS, HIDDEN, TOPK, TOPK_HIDDEN], ids=lambda case: case.op)
TWO_ROUNDS = TimingConfig(0.0, 2, 2)


@pytest.fixture(autouse=True)
def small_copy(monkeypatch):
    monkeypatch.setattr(measure_module, "copy_bandwidth", lambda device: copy_bandwidth(device, 1 << 16))


def pytorch(case: Case) -> Provider:
    return next(provider for provider in PROVIDERS[case.op] if provider.name == BASELINE)


def measured(case: Case, *providers: Provider) -> dict[str, dict]:
    rows = list(measure_case(case, DEVICE, [pytorch(case), *providers], 1e9, TWO_ROUNDS))
    assert all(set(row) <= set(FIELDS) for row in rows)
    return {row["provider"]: row for row in rows}


def test_a_short_call_on_a_cpu_runs_once_before_it_is_timed(monkeypatch):
    """Without it, the call would pay for the memory that the previous provider freed."""
    calls = []
    counted = pytorch(LOGITS)._replace(name="counted", loss=lambda p: calls.append(0) or pytorch(LOGITS).loss(p))
    made = {}
    for limit in (0.0, 1e9):
        monkeypatch.setattr(measure_module, "_SHORT_CALL", limit)
        calls.clear()
        assert measured(LOGITS, counted)["counted"]["rounds"] == TWO_ROUNDS.min_rounds
        made[limit] = len(calls)
    assert made[1e9] - made[0.0] == TWO_ROUNDS.min_rounds


def scales_the_loss(problem):
    return 1.001 * pytorch(problem.case).loss(problem)


def drops_a_row(problem):
    problem.span_ids[problem.supervised[-1]] = 0  # the count stays, so only this row's gradient and loss are lost
    loss = pytorch(problem.case).loss(problem) * ((len(problem.supervised) - 1) / len(problem.supervised))
    problem.span_ids[problem.supervised[-1]] = 1
    return loss


def adds_gradient_to_an_unsupervised_row(problem):
    return pytorch(problem.case).loss(problem) + 0.01 * (problem.leaves[0][problem.unsupervised[-1]] * 1.0).sum().sub(0)


def is_nan(problem):
    return pytorch(problem.case).loss(problem) * math.nan


@ALL
@pytest.mark.parametrize("wrong", [scales_the_loss, drops_a_row, adds_gradient_to_an_unsupervised_row, is_nan])
def test_a_wrong_provider_is_not_timed(case, wrong):
    rows = measured(case, Provider("wrong", wrong))
    assert rows["wrong"]["status"] == WRONG and "above the tolerance" in rows["wrong"]["reason"]
    assert "ms" not in rows["wrong"] and "times_pytorch" not in rows["wrong"]
    assert rows[BASELINE]["status"] == OK and rows[BASELINE]["ms"] > 0 and rows[BASELINE]["times_pytorch"] == 1


def test_a_correct_loss_with_a_wrong_gradient_is_wrong():
    def loss(problem):
        correct = pytorch(problem.case).loss(problem)
        return correct.detach() + 0.5 * (correct - correct.detach())

    assert measured(LOGITS, Provider("wrong", loss))["wrong"]["status"] == WRONG


def test_failures_and_out_of_memory_are_results():
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
    if available_bytes() is not None:
        assert rows["huge"]["status"] == NOT_RUN and "GiB are free" in rows["huge"]["reason"]
    assert rows[BASELINE]["status"] == OK


@ALL
def test_every_provider_is_correct_or_says_why_not(case):
    rows = [row for rows in measure_cases([case], DEVICE, quick=True, config=TWO_ROUNDS) for row in rows]
    assert [row["provider"] for row in rows] == [provider.name for provider in PROVIDERS[case.op]]
    status = {row["provider"]: row["status"] for row in rows}
    assert {status[name] for name in status if name in ("pytorch", "pytorch-gathered", "sad-cpu", "sad-cpu-inplace")} == {OK}
    assert all(row["reason"] and "\n" not in row["reason"] for row in rows if row["status"] != OK)
    if not torch.cuda.is_available():
        assert status["sad-cuda"] == NOT_RUN
        if not case.k:  # Liger-Kernel has no loss against a top-k teacher
            assert status["liger"] == status["liger-gathered"] == NOT_RUN
    if case is HIDDEN:
        assert status["matrix-products"] == OK
    assert not failed_backends(rows)


def test_a_provider_named_liger_calls_liger():
    named = [provider for providers in PROVIDERS.values() for provider in providers if "liger" in provider.name]
    assert {provider.loss for provider in named} == {peers.liger, peers.liger_gathered, peers.liger_float32}
    assert len(named) == 5


def test_small_gradients_in_float16_survive():
    rows = measured(Case(300, 2000, "float16", 1.0))
    assert rows[BASELINE]["status"] == OK, rows[BASELINE]["reason"]


def test_names_choose_providers_and_the_budget_ends_the_run():
    (rows,) = (list(rows) for rows in measure_cases([LOGITS], DEVICE, only=["sad-reference"], quick=True, config=TWO_ROUNDS))
    assert [(row["provider"], row["status"]) for row in rows] == [("sad-reference", OK)]
    assert "times_pytorch" not in rows[0]
    groups = [list(rows) for rows in measure_cases([LOGITS, HIDDEN], DEVICE, budget=-1.0)]
    assert len(groups) == 2 and {row["status"] for rows in groups for row in rows} == {NOT_RUN}


def test_in_pairs_a_row_is_complete_before_the_next_provider_starts():
    """A provider that ends the process loses no row of another one; each is timed against the baseline."""
    started = []

    def counted(name):
        return pytorch(LOGITS)._replace(name=name, loss=lambda p: started.append(name) or pytorch(LOGITS).loss(p))

    config = TWO_ROUNDS._replace(in_pairs=True)
    rows = measure_case(LOGITS, DEVICE, [counted(BASELINE), counted("first"), counted("second")], 1e9, config)
    baseline, first = next(rows), next(rows)
    assert (baseline["provider"], first["provider"]) == (BASELINE, "first") and "second" not in started
    assert baseline["times_pytorch"] == 1 and first["times_pytorch"] > 0 and first["ms"] > 0
    assert started.count(BASELINE) > 1 + TWO_ROUNDS.min_rounds  # again with each provider
    assert next(rows)["provider"] == "second" and next(rows, None) is None


def test_a_lost_device_ends_the_run_after_its_row(monkeypatch):
    def illegal_access(problem):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(measure_module, "_works", lambda device: False)
    config = TWO_ROUNDS._replace(in_pairs=True)
    providers = [pytorch(LOGITS), Provider("sad-cuda", illegal_access), Provider("next", illegal_access)]
    rows = measure_case(LOGITS, DEVICE, providers, 1e9, config)
    assert next(rows)["status"] == OK and next(rows)["status"] == FAILED
    with pytest.raises(DeviceLost, match="sad-cuda"):
        next(rows)


def test_finished_rows_are_not_measured_again():
    done = {(LOGITS.op, LOGITS.name, "pytorch"): OK, (LOGITS.op, LOGITS.name, "sad-reference"): FAILED}
    only = ["pytorch", "pytorch-gathered", "sad-reference"]
    ((row,),) = (list(rows) for rows in measure_cases([LOGITS], DEVICE, only=only, config=TWO_ROUNDS, done=done))
    assert row["provider"] == "pytorch-gathered" and row["times_pytorch"] > 0
    assert first_missing([LOGITS, HIDDEN], only, done)[1].name == "pytorch-gathered"
    done[LOGITS.op, LOGITS.name, "pytorch-gathered"] = OK
    assert first_missing([LOGITS, HIDDEN], only, done)[0] == HIDDEN and first_missing([LOGITS], only, done) is None
    assert list(measure_cases([LOGITS], DEVICE, only=only, config=TWO_ROUNDS, done=done)) == []


def test_only_the_backends_of_sad_count_as_failed():
    row = {"provider": "sad-cpu", "status": WRONG}
    assert failed_backends([row, {"provider": "liger", "status": WRONG}, {"provider": "sad-cuda", "status": NOT_RUN}]) == [
        row
    ]


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
    assert Case(10, 50257, "bfloat16", 0.4).moved_bytes == 4 * 3 * row + 6 * row
    assert Case(10, 50257, "float32", 1.0).moved_bytes == 10 * 3 * 50257 * 4
    assert Case(10, 50257, "bfloat16", 0.4, k=64).moved_bytes == 4 * (2 * row + 64 * 12) + 6 * row
    assert HIDDEN.moved_bytes is TOPK_HIDDEN.moved_bytes is None
    assert copy_bandwidth(DEVICE, 1 << 20) > 0


def test_logits_are_restored_after_in_place_work():
    problem = make_problem(LOGITS, DEVICE)
    before = problem.student.detach().clone()
    in_place = next(provider for provider in PROVIDERS[LOGITS.op] if provider.name == "sad-cpu-inplace")
    in_place.loss(problem).backward()
    assert not torch.equal(problem.student.detach(), before)
    problem.reset()
    assert torch.equal(problem.student.detach(), before) and problem.student.grad is None


@pytest.mark.skipif(available_bytes() is None, reason="the resident set is read from Linux's /proc")
def test_memory_is_the_peak_and_the_retained_bytes():
    size = 64 << 20

    def forward():
        kept = torch.ones(size // 4, requires_grad=True)
        torch.ones(size // 4).sum()  # freed at once
        return (kept * kept).sum()

    peak, retained = measure_memory(forward, torch.Tensor.backward, DEVICE)
    if peak is None:
        pytest.skip("this container hides the counters")
    # After forward, `kept` and its square remain; backward adds gradients. The margin of 10 % is for pages.
    assert size * 0.9 < retained < size * 2.2 and peak > size * 1.9


@pytest.mark.skipif(available_bytes() is None, reason="the resident set is read from Linux's /proc")
@pytest.mark.skipif(extension.missing("cpu") is not None, reason="needs the extension for CPUs")
def test_a_buffer_cached_by_an_earlier_call_counts():
    size = 64 << 20

    def forward():
        temporary = cpu_span_kl.new_logits((size // 4,), torch.empty(0)).fill_(2.0)
        return torch.ones(3, requires_grad=True).sum() * float(temporary[0])

    for _ in range(2):  # the second call finds the cached buffer
        peak, retained = measure_memory(forward, torch.Tensor.backward, DEVICE)
    if peak is None:
        pytest.skip("this container hides the counters")
    assert peak > size * 0.9 and retained < size * 0.1


def test_the_tables_contain_the_documented_cases():
    default = choose_cases("default", "cpu")
    for case in (
        Case(1024, 50257, "float32", 2 / 3),
        Case(1024, 50257, "float32", 0.2),
        Case(1024, 50257, "bfloat16", 2 / 3),
        Case(1024, 50257, "float16", 2 / 3),
        Case(2, 151936, "float32", 1.0),
    ):
        assert case in default
    assert any(case.vocab == 151936 and case.rows > 2 for case in default) and any(case.hidden for case in default)
    full = choose_cases("full", "cuda")
    assert {case.vocab for case in full} == {32000, 50257, 128256, 151936, 262144}
    assert {case.supervised for case in full} >= {1.0, 0.5, 0.2, 0.05}
    assert choose_cases("default", "cpu", "float32")[0] == CPU[0]
    assert (
        len(choose_cases("default", "cpu", "float32")) == len(CPU) - 2
    )  # the headline case in three dtypes becomes one case
    assert {case.op for case in choose_cases("quick", "cpu", topk=True)} == {"topk_span_kl", "linear_topk_span_kl"}
    assert "pytorch" in NAMES and "trl" in NAMES


def test_a_case_from_the_command_line():
    assert parse_case("8192,50257,bf16,0.5") == Case(8192, 50257, "bfloat16", 0.5)
    assert parse_case("8,40,fp32,1,h=6:10") == Case(8, 40, "float32", 1.0, (6, 10))
    assert parse_case("8,40,fp16,0.25,k=5,h=6:10") == Case(8, 40, "float16", 0.25, (6, 10), 5)


@pytest.mark.parametrize(
    "text",
    [
        *("", "8,40,fp32", "8,40,int8,1", "a,40,fp32,1", "0,40,fp32,1", "8,1,fp32,1", "8,40,fp32,0", "8,40,fp32,1.1"),
        *(
            "8,40,fp32,1,h=6",
            "8,40,fp32,1,h=6:0",
            "8,40,fp32,1,h=1:2:3",
            "8,40,fp32,1,k=41",
            "8,40,fp32,1,z=3",
            "8,40,fp32,1,k",
        ),
    ],
)
def test_an_invalid_case(text):
    with pytest.raises(ValueError, match=r"expected .*, got"):
        parse_case(text)
