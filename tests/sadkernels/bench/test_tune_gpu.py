"""The calls that `sad tune` checks and times reach the plans that they measure, in the emulation and the interpreter."""

from __future__ import annotations

import pytest
import torch

from sadkernels import backends, tuning
from sadkernels.bench import tune, tune_gpu
from sadkernels.bench.tune import Stage
from sadkernels.bench.tune_gpu import RealCard
from sadkernels.selftest import SpanKLCase, TopkCase

CPU = torch.device("cpu")


class Asked(dict):
    """Choices that record which settings the plans ask for."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.settings: list[str] = []

    def get(self, setting, default=None):
        self.settings.append(setting)
        return super().get(setting, default)


@pytest.fixture
def card(emulated_cuda) -> RealCard:
    pytest.importorskip("triton")
    for name in ("triton", "cuda"):
        if reason := backends.why_not(name, "span_kl", CPU):
            pytest.skip(reason)

    def clock(call):
        call()
        return 1e-3

    return RealCard(CPU, 2, clock)


@pytest.mark.parametrize("setting", tuning.CANDIDATES)
def test_the_calls_of_a_stage_ask_for_its_setting(card, monkeypatch, setting):
    monkeypatch.setattr(tune_gpu, "FEW_ROWS", 2)
    monkeypatch.setattr(tune_gpu, "HIDDEN", 8)
    stage, choice = Stage(setting, "float32", 70), tuning.CANDIDATES[setting][0]
    timed = Asked({setting: choice})
    assert card.seconds(stage, timed) == 1e-3
    small = tune_gpu.small_cases(stage)[0]._replace(rows=2, vocab=70)  # sizes that an interpreter can afford
    monkeypatch.setattr(tune_gpu, "small_cases", lambda stage: [small])
    checked = Asked({setting: choice})
    assert card.fault(stage, checked) is None
    if not setting.startswith("backend."):  # the call passes that backend by name
        assert setting in timed.settings and setting in checked.settings


def test_a_wrong_kernel_is_a_fault(card, monkeypatch):
    """The second case is wrong: a backward pass that writes nothing."""
    from sadkernels.native.cuda import span_kl

    monkeypatch.setattr(span_kl._launcher, "_kernel", lambda *_: None)
    monkeypatch.setattr(tune_gpu, "small_cases", lambda stage: [SpanKLCase(3, 64, torch.float32)])
    assert "SpanKLCase(rows=3" in card.fault(Stage("cuda.lean", "float32", 301), {})


def test_the_small_calls_reach_what_a_candidate_changes():
    """More rows than programs of any card per tile of 16 warps, several tiles per row, slices, and several chunks."""
    for setting in tuning.CANDIDATES:
        cases = tune_gpu.small_cases(Stage(setting, "bfloat16", 151936))
        assert all(case.dtype == torch.bfloat16 for case in cases)
        if setting.endswith(".slices"):
            assert any(case.rows < 16 and case.vocab > 16384 for case in cases)
        elif setting == "linear.chunk":
            chunks = [choice["rows"] for choice in tuning.CANDIDATES[setting]]
            assert all(case.hidden and case.supervised == "all" and case.rows > chunks[1] for case in cases)
        else:
            assert any(case.rows // 2 >= 2 * 148 and case.vocab > 8192 for case in cases)
            assert any(case.vocab % 8 for case in cases)
        assert any(isinstance(case, TopkCase) for case in cases) == ("topk" in setting)


def test_the_inputs_of_a_call_fit_in_the_memory(card, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=24 << 30))
    card._device, card._tokens = torch.device("cuda", 0), 4096
    assert card._tokens_for(Stage("triton.lean", "bfloat16", 50257)) == 4096
    tokens = card._tokens_for(Stage("triton.lean", "float32", 262144))
    assert tokens == (12 << 30) // (4 * 4 * 262144) < 4096
    assert card._tokens_for(Stage("cuda.slices", "float32", 262144)) == tune_gpu.FEW_ROWS


def test_a_call_without_memory_raises_memory_error(card, monkeypatch):
    def fail(case, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tune_gpu, "make_problem", fail)
    with pytest.raises(MemoryError, match="CUDA out of memory"):
        card.seconds(Stage("triton.lean", "float32", 301), {})


def test_the_search_runs_on_these_calls(card, monkeypatch):
    """One stage from end to end."""
    monkeypatch.setattr(tune_gpu, "small_cases", lambda stage: [SpanKLCase(3, 64, torch.float32)])
    monkeypatch.setattr(tune, "ROUNDS", 3)
    (entry,) = tune.tune(card, [Stage("cuda.slices", "float32", 301)]).entries
    assert entry.choice is None and entry.ms == 1.0
