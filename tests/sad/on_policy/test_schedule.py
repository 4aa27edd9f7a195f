"""The schedule of an on-policy training: shares, rollouts, draws and depth."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from sad.on_policy.schedule import Schedule

DEFAULTS = {
    "on_policy_start": 0.0, "on_policy_share": 1.0, "on_policy_end": 0.5, "rollout_interval": 4, "rollout_prefix": 0.0,
    "rollout_turns": None, "rollout_depth_end": 0.5,
}  # fmt: skip


def schedule(steps: int = 100, seed: int = 0, **fields) -> Schedule:
    return Schedule(SimpleNamespace(**DEFAULTS | fields), steps, seed)


def test_the_share_grows_linearly_to_its_end():
    made = schedule(on_policy_start=0.2, on_policy_share=0.8)
    assert [made.share(step) for step in (0, 25, 50, 99)] == pytest.approx([0.2, 0.5, 0.8, 0.8])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("batches", [1, 8])
def test_own_batches_have_the_share_on_average(share, batches):
    made = schedule(on_policy_start=share, on_policy_share=share)
    counts = [len(made.own_batches(step, batches)) for step in range(2000)]
    assert np.mean(counts) / batches == pytest.approx(share, abs=0.03)
    assert max(counts) - min(counts) <= 1, "a step deviates from the share by less than one batch"
    places = Counter(place for step in range(2000) for place in made.own_batches(step, batches))
    if 0 < share < 1:
        assert max(places.values()) / min(places.values()) < 1.4, "every place is drawn alike"


def test_a_rollout_is_played_only_if_a_step_draws_from_it():
    off = schedule(on_policy_share=0.0)
    assert not any(off.plays(rollout) for rollout in range(0, 100, 4))
    falling = schedule(on_policy_start=1.0, on_policy_share=0.0)
    assert [rollout for rollout in range(0, 100, 4) if falling.plays(rollout)] == list(range(0, 52, 4))
    assert schedule().plays(0), "the share grows within the first interval"


def test_the_steps_of_a_rollout_draw_every_example_once_before_any_twice():
    made = schedule(rollout_interval=4)
    for rollout in (0, 4):
        drawn = []
        for step in range(rollout, rollout + 4):
            drawn += made.draws(step, (step - rollout) * 6, 6, 24)
        assert sorted(drawn) == list(range(24))
        assert drawn != list(range(24))
    assert made.draws(0, 0, 6, 24) != made.draws(4, 0, 6, 24)
    assert Counter(made.draws(0, 0, 7, 3)) == {0: 3, 1: 2, 2: 2} or max(Counter(made.draws(0, 0, 7, 3)).values()) == 3


def test_all_tasks_are_played_before_any_is_played_again():
    made = schedule(rollout_interval=4)
    played = [index for rollout in range(0, 24, 4) for index in made.tasks(rollout, 5, 10)]
    for cycle in (played[:10], played[10:20], played[20:]):
        assert sorted(cycle) == list(range(10))
    assert played[:10] != played[10:20]
    assert schedule(seed=1).tasks(0, 5, 10) != made.tasks(0, 5, 10)


def test_the_depth_grows():
    made = schedule(rollout_prefix=0.8, rollout_turns=3)
    assert [made.prefix_share(step) for step in (0, 25, 50, 99)] == pytest.approx([0.8, 0.4, 0.0, 0.0])
    assert [made.turns(step, 20) for step in (0, 25, 50, 99)] == [3, 12, 20, 20]
    assert schedule().turns(0, 20) == 20 and schedule(rollout_turns=30).turns(0, 20) == 20


def test_a_step_is_a_pure_function_of_the_seed():
    one, other = schedule(seed=3), schedule(seed=3)
    for step in range(20, 30):
        assert one.own_batches(step, 8) == other.own_batches(step, 8)
        assert one.draws(step, 0, 8, 30) == other.draws(step, 0, 8, 30)
    assert any(one.own_batches(step, 8) != schedule(seed=4).own_batches(step, 8) for step in range(20, 30))
