"""The search of `sad tune`, on a simulated GPU with a cost model and a clock of its own."""

from __future__ import annotations

import json
import random
import zlib

import pytest

from sadkernels import backends, tuning
from sadkernels.bench import tune
from sadkernels.bench.tune import Stage
from sadkernels.tuning import CANDIDATES
from tests.sadkernels.tuned_gpu import SimulatedCard

BOTH = ("triton", "cuda")
ALL = tune.stages(BOTH, (50257, 151936), ("bfloat16", "float32"))


def shuffled_cost(stage, choices) -> float:
    """1 to 2 ms, another order of the candidates for every stage; the shipped choice takes 2.1 ms."""
    choice = choices.get(stage.setting)
    if choice is None:
        return 2.1e-3
    rank = zlib.crc32(json.dumps([*stage, choice], sort_keys=True).encode()) % 1000
    return (1 + rank / 1000) * 1e-3


def cheapest(stage):
    return min(CANDIDATES[stage.setting], key=lambda choice: shuffled_cost(stage, {stage.setting: choice}))


def search(card: SimulatedCard, stages=ALL, seconds: float = 60.0, **options) -> tune.Tuned:
    return tune.tune(card, stages, seconds=seconds, clock=card.clock, **options)


def test_the_cheapest_candidate_of_every_setting_is_chosen():
    reported = []
    result = search(SimulatedCard(shuffled_cost), report=reported.append)
    assert result.entries == reported and not result.left_out and not result.not_measured
    single = [entry for entry in result.entries if entry.vocab_size is not None]
    assert {entry.setting for entry in result.entries} == set(CANDIDATES)
    assert len(single) == len([stage for stage in ALL if not stage.setting.startswith("backend.")])
    for entry in single:
        stage = Stage(*entry[:3])
        assert entry.choice is cheapest(stage), stage
        assert entry.ms == pytest.approx(1e3 * shuffled_cost(stage, {stage.setting: entry.choice}), rel=1e-3)
        assert entry.shipped_ms == pytest.approx(2.1)


def test_the_backend_is_the_faster_one_over_all_vocabularies():
    """CUDA is 1.5 times slower on one vocabulary and 3 times faster on the other."""
    times = {("triton", 50257): 1.0, ("cuda", 50257): 1.5, ("triton", 151936): 3.0, ("cuda", 151936): 1.0}

    def cost(stage, choices):
        return 1e-3 * times[choices[stage.setting]["backend"], stage.vocab_size]

    stages = [stage for stage in ALL if stage.setting == "backend.span_kl"]
    entries = search(SimulatedCard(cost), stages).entries
    assert [(entry.dtype, entry.vocab_size, entry.choice["backend"]) for entry in entries] == [
        ("bfloat16", None, "cuda"),
        ("float32", None, "cuda"),
    ]
    assert entries[0].ms == pytest.approx(1.5**0.5, rel=1e-3) and entries[0].shipped_ms == pytest.approx(3**0.5, rel=1e-3)


def test_the_first_backend_is_the_one_that_auto_tries_first():
    for setting in ("backend.span_kl", "backend.topk_span_kl"):
        assert tuple(choice["backend"] for choice in CANDIDATES[setting]) == backends.AUTO_RULES[-1].backends


def test_later_stages_run_with_the_choices_of_earlier_ones():
    """A backend is measured with its own best plan. The losses from hidden states have float32 logits."""
    card = SimulatedCard(shuffled_cost)
    search(card)
    for stage, choices in card.checked:
        lean = Stage("triton.lean", "float32" if stage.setting == "linear.chunk" else stage.dtype, stage.vocab_size)
        if stage.setting in ("backend.span_kl", "linear.chunk"):
            assert choices["triton.lean"] is cheapest(lean)
        if stage.setting == "triton.lean":
            assert not set(choices) - {"triton.lean"}


@pytest.mark.parametrize(("gain", "changes"), [(1.01, False), (1.05, True)])
def test_a_candidate_must_be_clearly_faster(gain, changes):
    fast = CANDIDATES["triton.lean"][4]

    def cost(stage, choices):
        return 1e-3 / (gain if choices.get(stage.setting) is fast else 1.0)

    (entry,) = search(SimulatedCard(cost), [Stage("triton.lean", "bfloat16", 50257)]).entries
    assert entry.choice is (fast if changes else None)
    assert entry.ms == pytest.approx(1 / gain if changes else 1.0, rel=1e-3)


def test_equal_candidates_keep_the_shipped_choice():
    assert all(
        entry.choice in (None, CANDIDATES[entry.setting][0]) for entry in search(SimulatedCard(lambda *_: 1e-3)).entries
    )


@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_change_the_choice(seed):
    """A fifth of the calls takes up to 10 times as long, and the first calls after a compilation take 50 times as long."""
    random_ = random.Random(seed)
    order = list(CANDIDATES["triton.lean"])
    random_.shuffle(order)
    warm = set()

    def cost(stage, choices):
        choice = choices.get(stage.setting)
        first = str(choice) not in warm
        warm.add(str(choice))
        rank = len(order) if choice is None else order.index(choice)
        return (1 + 0.1 * rank) * 1e-3 * (50 if first else 1)

    def slow_down(call):
        return random_.uniform(1, 10) if random_.random() < 0.2 else random_.uniform(0.99, 1.01)

    (entry,) = search(SimulatedCard(cost, slow_down=slow_down), [Stage("triton.lean", "bfloat16", 50257)]).entries
    assert entry.choice is order[0]


@pytest.mark.parametrize(("seconds", "compile_seconds", "call"), [(60, 2.0, 5e-3), (20, 0.1, 0.1), (3, 0.0, 1e-3)])
def test_the_time_is_kept_and_the_results_until_then_too(seconds, compile_seconds, call):
    card = SimulatedCard(lambda stage, choices: call * 1e3 * shuffled_cost(stage, choices), compile_seconds=compile_seconds)
    begin = card.now
    result = search(card, seconds=seconds)
    assert card.now - begin <= seconds and result.seconds == card.now - begin
    assert result.not_measured
    decided = [stage for stage in ALL if stage not in result.not_measured]
    assert decided == ALL[: len(decided)] and decided
    entries = {tuple(entry[:3]): entry for entry in result.entries}
    for stage in decided:
        if not stage.setting.startswith("backend."):
            assert entries[stage].choice is cheapest(stage)
    assert len([entry for entry in result.entries if entry.vocab_size is not None]) == len(
        [stage for stage in decided if not stage.setting.startswith("backend.")]
    )


def test_one_slow_call_exceeds_the_time_by_itself_at_most():
    card = SimulatedCard(lambda *_: 1e-3, slow_down=lambda call: 70_000.0 if call == 30 else 1.0)
    begin = card.now
    result = search(card, seconds=60)
    assert 60 < card.now - begin < 71 and result.not_measured


def test_no_time_at_all():
    card = SimulatedCard(shuffled_cost, compile_seconds=10.0)
    result = search(card, seconds=5)
    assert result.entries == [] and result.not_measured == ALL


def test_a_wrong_candidate_is_left_out_and_named():
    stage = Stage("triton.lean", "bfloat16", 50257)
    best = cheapest(stage)
    card = SimulatedCard(shuffled_cost, wrong=lambda stage, choices: choices.get(stage.setting) is best)
    result = search(card, [stage])
    assert result.left_out == [tune.LeftOut("triton.lean", "bfloat16", best, "error 37 times the rounding")]
    others = [choice for choice in CANDIDATES["triton.lean"] if choice is not best]
    assert result.entries[0].choice is min(others, key=lambda choice: shuffled_cost(stage, {stage.setting: choice}))
    assert not result.shipped_is_wrong


def test_every_candidate_is_compared_once_for_all_vocabularies():
    card = SimulatedCard(shuffled_cost)
    search(card, [stage for stage in ALL if stage.setting == "triton.lean"])
    assert len(card.checked) == 2 * (1 + len(CANDIDATES["triton.lean"]))  # two dtypes; the shipped choice too


def test_a_wrong_backend_is_not_chosen():
    """CUDA is faster and wrong in every call, with what the package ships too."""

    def wrong(stage, choices):
        return stage.setting.startswith("cuda.") or choices.get(stage.setting) == {"backend": "cuda"}

    def cost(stage, choices):
        return 1e-3 if choices.get("backend.span_kl") == {"backend": "cuda"} else 2e-3

    result = search(SimulatedCard(cost, wrong=wrong))
    assert {entry.choice["backend"] for entry in result.entries if entry.vocab_size is None} == {"triton"}
    assert result.shipped_is_wrong and not [entry for entry in result.entries if entry.setting.startswith("cuda.")]
    assert {stage.setting for stage in result.not_measured} == {"cuda.lean", "cuda.slices", "cuda.roomy"}


def test_a_backend_that_fails_for_one_vocabulary_is_not_chosen_for_all():
    """CUDA is faster on the vocabulary on which it runs."""

    def cost(stage, choices):
        if choices.get(stage.setting) == {"backend": "cuda"}:
            if stage.vocab_size == 151936:
                raise RuntimeError("the launch failed")
            return 1e-3
        return 2e-3

    result = search(SimulatedCard(cost), [stage for stage in ALL if stage.setting == "backend.span_kl"])
    assert [entry.choice for entry in result.entries] == 2 * [{"backend": "triton"}]
    assert len(result.left_out) == 2 and not result.shipped_is_wrong


def test_a_candidate_that_fails_when_it_is_timed_is_left_out():
    stage = Stage("triton.lean", "bfloat16", 50257)
    best = cheapest(stage)

    def cost(stage, choices):
        if choices.get(stage.setting) is best:
            raise RuntimeError("too many resources requested for launch\nmore")
        return shuffled_cost(stage, choices)

    result = search(SimulatedCard(cost), [stage])
    assert [(x.choice, x.reason) for x in result.left_out] == [
        (best, "RuntimeError: too many resources requested for launch")
    ]
    assert result.entries[0].choice not in (best, None)


def test_a_call_that_does_not_fit_in_memory_leaves_the_stage_undecided():
    def cost(stage, choices):
        if stage.vocab_size == 151936:
            raise MemoryError("CUDA out of memory")
        return shuffled_cost(stage, choices)

    result = search(SimulatedCard(cost))
    assert {stage.vocab_size for stage in result.not_measured} == {151936}
    assert {entry.vocab_size for entry in result.entries} == {50257, None} and not result.left_out


def test_stages_of_the_backends_that_run():
    settings = {stage.setting for stage in tune.stages(["triton"], [100], ["float32"])}
    assert settings == {name for name in CANDIDATES if name.startswith(("triton.", "linear."))}
    assert [stage.setting for stage in tune.stages(["cuda"], [100, 100], ["float32"])] == [
        *("cuda.lean", "cuda.slices", "linear.chunk", "cuda.roomy")
    ]
    assert {stage.setting for stage in ALL} == set(CANDIDATES) == set(tune._ORDER)
    assert set(tune.DTYPES) <= set(tuning.DTYPES)
