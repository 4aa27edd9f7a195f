"""Row weights of the CPU extension against their definition in PyTorch."""

from __future__ import annotations

import itertools

import pytest
import torch

from sadkernels.native.cpu import row_weights as native
from sadkernels.reference import row_weights as reference

IDS = torch.tensor([[1, 0, 2, 2, 1], [3, -100, 1, 2, 127]])
NORMALIZERS = {"mean": [None, torch.tensor([7, 7])], "span_mean": [None, torch.tensor([3.0, 0.5], dtype=torch.float64)]}


@pytest.mark.parametrize("reduction", ["mean", "span_mean", "sum", "none"])
@pytest.mark.parametrize("shift", [False, True])
def test_all_options(reduction, shift):
    for lambdas, read_all, normalizer in itertools.product(
        [(1.0, 1.0), (0.3, 2.0), (0.0, 1.0), (0.0, 0.0)], [False, True], NORMALIZERS.get(reduction, [None])
    ):
        options = (normalizer, lambdas, reduction, shift, read_all or reduction == "none", torch.float32)
        for got, expected in zip(native.row_weights(IDS, *options), reference.row_weights(IDS, *options)):
            assert got.dtype == expected.dtype and torch.equal(got, expected), (lambdas, read_all, normalizer)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_integer_dtypes_and_strides(dtype):
    """257 and 2^32 + 1 are not reason: no dtype is truncated."""
    ids = torch.tensor([[1, 2, 0, 1], [2, 2, 5, 0]]).to(dtype)
    if dtype.itemsize > 1:
        ids[1, 2] = 257
    if dtype == torch.int64:
        ids[1, 3] = 2**32 + 1
    for x in (ids, ids.t(), ids[:, ::2]):
        options = (None, (1.0, 1.0), "mean", True, False, torch.float32)
        for got, expected in zip(native.row_weights(x, *options), reference.row_weights(x, *options)):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_no_rows(shape):
    kinds, read, weights, counts = native.row_weights(
        torch.zeros(shape, dtype=torch.int64), None, (1.0, 1.0), "mean", len(shape) > 1, False, torch.float32
    )
    assert kinds.numel() == read.numel() == weights.numel() == 0 and counts.tolist() == [0, 0]


def test_a_normalizer_of_zero_does_not_reach_a_lambda_of_zero():
    options = (torch.zeros(2), (0.0, 1.0), "mean", False, False, torch.float32)
    for module in (native, reference):
        _, read, weights, _ = module.row_weights(torch.tensor([1, 2, 0]), *options)
        assert weights.tolist() == [0.0, torch.inf, 0.0] and read.tolist() == [0, 2, 0]
