"""Cached values against log_softmax in float64, bytes per row, and digests, for vocabularies of all sizes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sad.errors import InputError
from sad.teacher_cache.metadata import CacheMetadata, example_digest, metadata_from_json, supervised_rows
from sad.teacher_cache.row_kinds import row_bytes
from sad.teacher_cache.rows import pack, rows_from_logits, tail_spread, unpack


def metadata(top_k: int, vocab_size: int, dtype: str = "uint16") -> CacheMetadata:
    return CacheMetadata(top_k, vocab_size, dtype, "tokens", "weights", "float32")


def logits(rows: int, columns: int) -> torch.Tensor:
    """Returns flat to peaked rows. The first row has two equal largest columns."""
    made = torch.randn(rows, columns) * torch.logspace(-1, 1, rows)[:, None]
    made[0, [7, columns - 1]] = made[0].max() + 1
    return made


@pytest.mark.parametrize("columns", [50, 4000, 131_073], ids=["small", "medium", "three blocks of ids"])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_packed_rows_match_log_softmax(columns, dtype):
    given, about = logits(12, columns), metadata(40, columns, dtype)
    exact = given.double().log_softmax(-1)
    rows = unpack(pack(rows_from_logits(given, about.top_k), about), about)
    best = exact.topk(about.top_k).values
    ids = torch.from_numpy(rows.ids).long()
    assert (ids.diff() > 0).all()
    torch.testing.assert_close(
        exact.gather(1, ids).sort(descending=True).values, best, rtol=0, atol=1e-5
    )  # tolerates near ties
    got = torch.from_numpy(rows.logprobs).double()
    half_a_step = 0 if dtype == "float32" else (best[:, :1] - best[:, -1:]) / 65534 / 2
    rounded = 2e-7 / best.exp().sum(-1, keepdim=True)  # rounding of 1 - rest in float32, to which the top k sum
    assert ((got - exact.gather(1, ids)).abs() <= 2 * half_a_step + rounded + 1e-5).all()
    torch.testing.assert_close(torch.from_numpy(rows.argmax).long(), exact.argmax(-1))
    torch.testing.assert_close(rows.ids[np.arange(12), rows.logprobs.argmax(1)], rows.argmax)  # also for ties
    mass = torch.zeros(12, dtype=torch.float64).index_add_(0, torch.arange(12), exact.exp().gather(1, ids).sum(-1))
    torch.testing.assert_close(torch.from_numpy(rows.rest).double(), 1 - mass, rtol=1e-4, atol=1e-6)
    entropy = -(exact.exp() * exact).sum(-1)
    torch.testing.assert_close(torch.from_numpy(rows.entropy).double(), entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.exp().sum(-1), 1 - torch.from_numpy(rows.rest).double(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("columns", [32_000, 50_257, 65_536, 65_537, 151_936, 262_144])
def test_at_most_300_bytes_per_token_at_k_64(columns):
    about = metadata(64, columns)
    packed = pack(rows_from_logits(torch.randn(5, columns), 64), about)
    assert sum(array.nbytes for array in packed.values()) == 5 * row_bytes(about) <= 5 * 300


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_columns_with_probability_zero(dtype):
    """A masked column keeps probability 0 and does not widen the uint16 steps of the other columns."""
    given, about = torch.randn(3, 20), metadata(20, 20, dtype)
    given[:, 4] = -torch.inf
    rows = unpack(pack(rows_from_logits(given, 20), about), about)
    assert (rows.logprobs[:, 4] == -np.inf).all() and np.isfinite(np.delete(rows.logprobs, 4, 1)).all()
    assert np.isfinite(rows.entropy).all() and (rows.rest == 0).all()
    np.testing.assert_allclose(np.exp(rows.logprobs.astype(np.float64)).sum(1), 1, atol=1e-6)


def test_a_rest_of_1e_9_is_precise():
    given = torch.full((1, 1000), -20.0)
    given[0, 3] = 5.0
    rest = rows_from_logits(given, 1).rest
    assert rest[0] == pytest.approx(999 * np.exp(-25.0) / (1 + 999 * np.exp(-25.0)), rel=1e-5)


def test_tail_spread_is_the_kl_to_a_student_with_a_uniform_tail():
    given, k = 3 * torch.randn(6, 200), 10
    rows, log_p = rows_from_logits(given, k), given.double().log_softmax(-1)
    ids = torch.from_numpy(rows.ids).long()
    rest = 1 - log_p.exp().gather(1, ids).sum(-1, keepdim=True)
    student = (
        (rest / 190).log().expand(6, 200).scatter(1, ids, log_p.gather(1, ids))
    )  # equal to the teacher except in the tail
    dense = (log_p.exp() * (log_p - student)).sum(-1)
    assert dense.mean() > 0.05
    np.testing.assert_allclose(tail_spread(rows, 200), dense.numpy(), rtol=1e-4, atol=1e-5)
    assert (tail_spread(rows_from_logits(given, 200), 200) == 0).all()


def test_example_digests_depend_on_tokens_labels_and_order():
    base = ([1, 2, 3], [0, 1, 2])
    others = [([1, 2, 4], [0, 1, 2]), ([1, 2, 3], [0, 2, 1]), ([2, 1, 3], [0, 1, 2]), ([1, 2], [0, 1])]
    assert len({example_digest(*example) for example in (base, *others)}) == 5
    assert example_digest(torch.tensor([1, 2, 3]), np.array([0, 1, 2], np.uint8)) == example_digest(*base)
    assert supervised_rows([1, 0, 2, 1, -100, 3]).tolist() == [1, 2]  # nothing predicts the first token
    assert supervised_rows([3, 0, 2, 1, -100, 3], observe=True).tolist() == [1, 2, 4]


def test_metadata_of_a_cache_without_observations_are_those_of_older_versions():
    one = metadata(8, 100)
    assert "observe" not in one.to_json() and metadata_from_json("file", one.to_json()) == one
    observing = dataclasses.replace(one, observe=True)
    assert observing.to_json()["observe"] is True and metadata_from_json("file", observing.to_json()) == observing


def test_metadata_name_their_differences():
    one = metadata(8, 100)
    assert one.differences(dataclasses.replace(one, teacher_name="elsewhere")) is None
    assert one.differences(dataclasses.replace(one, top_k=9, dtype="float32")) == (
        "top_k 8, dtype uint16",
        "top_k 9, dtype float32",
    )
    assert one.differences(dataclasses.replace(one, observe=True)) == ("observe False", "observe True")
    for wrong in ({"top_k": 0}, {"top_k": 101}, {"dtype": "int4"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            dataclasses.replace(one, **wrong)
