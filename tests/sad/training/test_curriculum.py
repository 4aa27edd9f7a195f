"""The difficulty of eq. 7 and the order of the trajectories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sad.errors import InputError
from sad.training import difficulty
from sad.training.curriculum import CurriculumSampler, difficulty_scores
from sad.trajectories.batching import batches_by_length
from tests.sad.training import tiny


def measured(made, dataset=None) -> difficulty.Measures:
    """Returns the measures of a trainer's curriculum, measured or from the run folder."""
    dataset = made.train_dataset if dataset is None else dataset
    rows = difficulty.read_rows(dataset, made.args.max_length)
    return difficulty.measure_dataset(dataset, rows, made.args, made.accelerator, teacher=made.teacher_model)


def drawn(sampler: CurriculumSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


# --- eq. 7 ---


def test_raw_scores_are_eq_7_to_the_letter():
    scores = difficulty_scores([10, 20], [3, 1], [2.0, 0.5], alpha=1.0, beta=2.0, gamma=4.0, units="raw")
    np.testing.assert_allclose(scores, [10 + 6 + 8, 20 + 2 + 2])


def test_relative_scores_do_not_depend_on_the_unit_of_a_term():
    reason, act, entropy = np.array([10, 30]), np.array([4, 4]), np.array([1.0, 0.5])
    scores = difficulty_scores(reason, act, entropy)
    np.testing.assert_allclose(scores, [0.5 + 1 + 4 / 3, 1.5 + 1 + 2 / 3])
    np.testing.assert_allclose(scores, difficulty_scores(reason * 1000, act, entropy / np.log(2)))


def test_a_term_that_is_all_zero_or_not_weighed_is_left_out():
    np.testing.assert_allclose(difficulty_scores([1, 3], [0, 0], [np.nan, np.nan], gamma=0.0), [0.5, 1.5])
    with pytest.raises(InputError, match="teacher_entropy of trajectory 1"):
        difficulty_scores([1, 3], [1, 1], [1.0, np.nan])


# --- the order ---


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.integers(0, 5).map(float), min_size=1, max_size=40),
    epochs=st.floats(0.3, 6),
    start=st.floats(0, 1),
    end=st.floats(0.05, 1),
    seed=st.integers(0, 2**32),
)
def test_order_properties(scores, epochs, start, end, seed):
    """The properties of the class hold for any scores and any pace."""
    n = len(scores)
    make = lambda: CurriculumSampler(scores, epochs=epochs, start=start, end=end, seed=seed)  # noqa: E731
    ranks = {index: rank for rank, index in enumerate(sorted(range(n), key=lambda i: (scores[i], i)))}
    sampler = make()
    for epoch in range(int(np.ceil(epochs)) + 1):
        order = drawn(sampler, epoch)
        assert len(order) == n
        assert order == drawn(make(), epoch)  # independent of earlier draws
        shares = [float(sampler.admitted_share((epoch + (i + 1) / n) / epochs)) for i in range(n)]
        for index, share in zip(order, shares):
            assert ranks[index] < max(1, np.ceil(n * share))  # only admitted trajectories
        times = np.bincount(order, minlength=n)
        # Each is drawn once if the pool never runs empty, as in an epoch that starts with all admitted.
        if all(np.ceil(n * share - 1e-9) >= i + 1 for i, share in enumerate(shares)):
            assert (times == 1).all()


def padding(order: list[int], lengths: np.ndarray, batch: int) -> float:
    """Returns the share of padding among the tokens of all batches."""
    batches = [lengths[order[i : i + batch]] for i in range(0, len(order), batch)]
    return 1 - sum(x.sum() for x in batches) / sum(len(x) * x.max() for x in batches)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 120), st.integers(1, 9), st.integers(1, 7), st.integers(0, 3))
def test_grouping_by_length_changes_no_window(n, batch, window, epoch):
    """Every window has the same draws, in batches of neighbours in length, in a reproducible order."""
    lengths = np.random.default_rng(n).integers(1, 500, n)
    plain = CurriculumSampler(np.arange(n), epochs=4, seed=1)
    grouped = CurriculumSampler(np.arange(n), epochs=4, seed=1, lengths=lengths, batch_size=batch, window=window)
    before, after = drawn(plain, epoch), drawn(grouped, epoch)
    assert after == drawn(grouped, epoch)
    for first in range(0, n, batch * window):
        part = slice(first, first + batch * window)
        assert sorted(before[part]) == sorted(after[part])
        full = len(before[part]) // batch * batch
        spans = [(min(x), max(x)) for x in lengths[after[part][:full]].reshape(-1, batch).tolist()]
        assert all(a[1] <= b[0] for a, b in zip(sorted(spans), sorted(spans)[1:]))


def test_little_is_padding():
    lengths = np.random.default_rng(0).integers(60, 512, 2000)
    scores = lengths + np.random.default_rng(1).normal(0, 100, 2000)
    plain = CurriculumSampler(scores, epochs=2)
    grouped = CurriculumSampler(scores, epochs=2, lengths=lengths, batch_size=8)
    for epoch in range(2):
        assert padding(drawn(grouped, epoch), lengths, 8) < 0.1 < padding(drawn(plain, epoch), lengths, 8)


def test_one_epoch_sees_everything_once_easy_ones_first():
    scores = np.random.default_rng(0).permutation(1000)
    order = drawn(CurriculumSampler(scores, epochs=1, start=0.2, end=1.0), 0)
    assert sorted(order) == list(range(1000))
    quarters = scores[order].reshape(4, 250).mean(1)
    assert (np.diff(quarters) > 50).all()


def test_easy_ones_are_repeated_evenly_until_harder_ones_are_admitted():
    order = drawn(CurriculumSampler(np.arange(100), epochs=10, start=0.1, end=1.0), 0)
    times = np.bincount(order, minlength=100)
    assert times[:10].min() >= 5 and times[20:].sum() == 0


def test_epochs_and_seeds_give_different_orders():
    orders = [
        drawn(CurriculumSampler(np.arange(50), epochs=4, end=0.1, seed=seed), epoch)
        for seed, epoch in ((0, 1), (0, 2), (1, 1))
    ]
    assert len(set(map(tuple, orders))) == 3


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"epochs": 1, "start": -0.1}, {"epochs": 1, "end": 0}])
def test_sampler_refuses(wrong):
    with pytest.raises(InputError):
        CurriculumSampler([1.0, 2.0], **wrong)
    with pytest.raises(InputError, match="scores"):
        CurriculumSampler([1.0, float("nan")], epochs=1)


# --- measuring ---


def test_batches_hold_no_more_than_their_tokens_and_everything_once():
    lengths = [3, 50, 7, 7, 12, 1, 30]
    batches = batches_by_length(lengths, 32)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 32 for batch in batches if len(batch) > 1)
    assert batches == batches_by_length(lengths, 32)


def test_teacher_entropy_is_the_mean_over_supervised_tokens(trainer):
    """Compares each trajectory, without padding, with the entropy from its logits."""
    made = trainer()
    measures = measured(made)
    for index, example in enumerate(made.train_dataset):
        with torch.no_grad():
            logits = made.teacher_model(torch.tensor([example["input_ids"]])).logits[0, :-1].double()
        labels = torch.tensor(example["span_ids"][1:])
        entropy = torch.distributions.Categorical(logits=logits).entropy()[labels > 0].mean()
        assert measures.teacher_entropy[index] == pytest.approx(entropy.item(), rel=1e-5)
        assert measures.reason_tokens[index] == (labels == 1).sum()
        assert measures.act_tokens[index] == (labels == 2).sum()
    assert np.std(measures.teacher_entropy) > 0.01  # the third term has an effect


def test_the_teacher_runs_once_and_never_on_more_than_a_training_batch(trainer):
    made, seen = trainer(per_device_train_batch_size=2, max_length=40), []
    hook = lambda model, args, batch: seen.append(batch["input_ids"].numel())  # noqa: E731
    made.teacher_model.register_forward_pre_hook(hook, with_kwargs=True)
    first = measured(made)
    assert max(seen) <= 2 * 40
    calls = len(seen)
    again = measured(made)  # from the run folder
    assert len(seen) == calls
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a, b)


def test_kept_difficulties_of_other_data_or_another_teacher_are_refused(trainer):
    made = trainer()
    measured(made)
    path = Path(made.args.output_dir, difficulty.FILE_NAME)
    before = path.read_text()
    with pytest.raises(InputError, match="another data"):
        measured(made, made.train_dataset[:-1])
    made.teacher_model = tiny.model(seed=5)
    with pytest.raises(InputError, match="another teacher"):
        measured(made)
    assert path.read_text() == before
    path.write_text(json.dumps({"data": 1}))
    with pytest.raises(InputError, match=difficulty.FILE_NAME):
        measured(made)


def test_without_gamma_the_teacher_is_not_asked(trainer):
    made = trainer(curriculum_gamma=0.0)
    made.teacher_model.forward = None
    sampler = made._get_train_sampler()
    lengths = [sum(np.array(example["span_ids"]) > 0) for example in made.train_dataset]
    first = next(iter(sampler))
    assert lengths[first] <= np.quantile(lengths, 0.5)


def test_the_data_hash_sees_tokens_labels_and_borders():
    base = [{"input_ids": [1, 2, 3], "span_ids": [0, 1, 2]}, {"input_ids": [4], "span_ids": [0]}]
    others = [
        [{"input_ids": [1, 2, 4], "span_ids": [0, 1, 2]}, base[1]],
        [{"input_ids": [1, 2, 3], "span_ids": [0, 1, 1]}, base[1]],
        [{"input_ids": [1, 2], "span_ids": [0, 1]}, {"input_ids": [3, 4], "span_ids": [2, 0]}],
        base[::-1],
    ]
    digests = {difficulty.read_rows(data, None).digest for data in (base, *others)}
    assert len(digests) == 5
    with pytest.raises(InputError, match="span_ids of example 0"):
        difficulty.read_rows([{"input_ids": [1, 2], "span_ids": [0]}], None)


def test_collated_entropies_ignore_padding(trainer):
    """Trajectories in one padded batch have the same entropies as alone."""
    data, sums = tiny.examples(6), []
    for size in (1, 6):  # an example of max_length 96 per batch, or all of them
        made = trainer(train=data, per_device_train_batch_size=size)
        given = (data, difficulty.read_rows(data, 96), made.args, made.accelerator, made.teacher_model)
        sums.append(difficulty.teacher_entropy_sums(*given))
    torch.testing.assert_close(*sums, rtol=1e-5, atol=1e-5)


def test_a_dataset_that_max_length_cuts_is_a_warning(trainer):
    data = [{"input_ids": [5] * 30, "span_ids": [0] * 10 + [1] * 10 + [2] * 10}] * 4
    with pytest.warns(UserWarning, match=r"max_length cuts 48 of 80 supervised tokens \(60%\)"):
        trainer(train=data, max_length=18, curriculum_gamma=0.0)._get_train_sampler()
    assert difficulty.read_rows(data, 18)[2:] == (80, 48) and difficulty.read_rows(data, None)[2:] == (80, 0)
