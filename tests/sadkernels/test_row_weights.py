"""Row weights of both implementations against their definition, one token after the other."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sadkernels.divergence import RowValues
from sadkernels.native.cpu import row_weights as native
from sadkernels.reference import row_weights as reference
from sadkernels.tokens import Tokens
from sadkernels.triton import row_weights as interpreted

IDS = torch.tensor([[1, 0, 2, 2, 1, 3, 3], [3, -100, 1, 2, 127, 2, 3]])
TURNS = torch.tensor([[7, 7, 7, 7, 9, 9, 9], [9, 9, 0, -5, -5, -5, 7]])
WEIGHTS = torch.tensor([[0.5, 2.0, 3.0, 0.25, 0.0, 1.5, 1.0], [1.0, 1.0, 0.0, 4.0, 1.0, 1e-30, 2.5]])
LAMBDAS = [(1.0, 1.0, 0.0), (0.3, 2.0, 0.1), (0.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.5)]
NORMALIZERS = {
    "mean": [None, torch.tensor([7, 7, 7])],
    "turn_mean": [None, torch.tensor([7, 7, 7])],
    "span_mean": [None, torch.tensor([3.0, 0.5, 11.0], dtype=torch.float64)],
}


def expected(tokens: Tokens, lambdas: tuple, reduction: str, shift: bool, read_all: bool) -> tuple[list, list, list, list]:
    """Kinds, kinds of the rows that are read, weights and counts, in Python's float64."""
    kinds, units, turns = [], [], []
    for sequence, ids in enumerate(tokens.span_ids.tolist()):
        last = None
        for t in range(len(ids)):
            at = t + shift
            kind = ids[at] if at < len(ids) and ids[at] in (1, 2, 3) else 0
            kind = 0 if kind == 3 and lambdas[2] == 0 else kind
            key = {0: 0, 1: 1, 2: 1, 3: 2}[kind]
            if tokens.turn_ids is not None:
                key = tokens.turn_ids[sequence, at].item() if at < len(ids) else 0
            if t == 0 or key != last:
                turns.append(len(turns) if not turns else turns[-1] + 1)
            else:
                turns.append(turns[-1])
            last = key
            unit = 1.0 if tokens.token_weights is None or kind == 0 else tokens.token_weights[sequence, at].item()
            units.append(unit)
            kinds.append(kind if unit > 0 else 0)
    rows = range(len(kinds))

    def total(kind: int | None = None, turn: int | None = None) -> float:
        of_kind = [n for n in rows if kinds[n] and kind in (None, kinds[n]) and turn in (None, turns[n])]
        return math.fsum(units[n] for n in of_kind)

    supervised_turns = len({turns[n] for n in rows if kinds[n]})
    weights = []
    for n in rows:
        kind = kinds[n]
        normalizer = None if tokens.normalizer is None or not kind else tokens.normalizer[kind - 1].item()
        if not kind or (reduction != "none" and lambdas[kind - 1] == 0):
            weights.append(0.0)
        elif reduction == "none":
            weights.append(1.0)
        else:
            divisor = 1.0
            if reduction == "mean":
                divisor = normalizer or total()
            elif reduction == "span_mean":
                divisor = normalizer or total(kind=kind)
            elif reduction == "turn_mean":
                divisor = total(turn=turns[n]) * (normalizer or supervised_turns)
            weights.append(lambdas[kind - 1] * units[n] / divisor)
    read = [kind if read_all or reduction == "none" or weight else 0 for kind, weight in zip(kinds, weights)]
    return kinds, read, weights, [kinds.count(kind) for kind in (1, 2, 3)]


@pytest.mark.parametrize("module", [native, reference, interpreted], ids=["cpu", "reference", "triton"])
@pytest.mark.parametrize("reduction", ["mean", "span_mean", "turn_mean", "sum", "none"])
@pytest.mark.parametrize("shift", [False, True])
def test_definition(module, reduction, shift):
    if module is interpreted and reduction == "turn_mean":
        pytest.skip("computed by the reference")
    for lambdas, read_all, normalizer, token_weights, turn_ids in itertools.product(
        LAMBDAS, [False, True], NORMALIZERS.get(reduction, [None]), [None, WEIGHTS], [None, TURNS]
    ):
        tokens = Tokens(IDS, token_weights, turn_ids, normalizer)
        got = module.row_weights(tokens, lambdas, reduction, shift, read_all, torch.float32)
        kinds, read, weights, counts = expected(tokens, lambdas, reduction, shift, read_all)
        assert got[0].tolist() == kinds and got[1].tolist() == read and got[3].tolist() == counts, tokens
        assert got[2].tolist() == pytest.approx(weights, rel=3e-7, abs=0), tokens


@pytest.mark.parametrize("reduction", ["mean", "span_mean", "turn_mean", "sum"])
def test_both_implementations_give_the_same_bits(reduction):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        ids = torch.randint(0, 4, (3, 50), generator=generator)
        weights = (torch.rand(3, 50, generator=generator) * 64).round() / 64  # sums are exact in any order
        for token_weights in (None, weights):
            options = (Tokens(ids, token_weights), (0.3, 0.7, 0.1), reduction, True, False, torch.float32)
            for got, want in zip(native.row_weights(*options), reference.row_weights(*options)):
                assert got.dtype == want.dtype and torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
def test_integer_dtypes_and_strides(dtype):
    """257 and 2^32 + 1 are not reason: no dtype is truncated."""
    ids = torch.tensor([[1, 2, 0, 3], [2, 2, 5, 0]]).to(dtype)
    if dtype.itemsize > 1:
        ids[1, 2] = 257
    if dtype == torch.int64:
        ids[1, 3] = 2**32 + 1
    for x in (ids, ids.t(), ids[:, ::2]):
        options = (Tokens(x), (1.0, 1.0, 1.0), "mean", True, False, torch.float32)
        for got, want in zip(native.row_weights(*options), reference.row_weights(*options)):
            assert torch.equal(got, want)


@pytest.mark.parametrize("reduction", ["mean", "turn_mean"])
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
@pytest.mark.parametrize("module", [native, reference], ids=["cpu", "reference"])
def test_no_rows(module, shape, reduction):
    tokens = Tokens(torch.zeros(shape, dtype=torch.int64))
    kinds, read, weights, counts = module.row_weights(
        tokens, (1.0, 1.0, 0.0), reduction, len(shape) > 1, False, torch.float32
    )
    assert kinds.numel() == read.numel() == weights.numel() == 0 and counts.tolist() == [0, 0, 0]


def test_a_normalizer_of_zero_does_not_reach_a_lambda_of_zero():
    tokens = Tokens(torch.tensor([1, 2, 0]), normalizer=torch.zeros(3))
    for module in (native, reference):
        _, read, weights, _ = module.row_weights(tokens, (0.0, 1.0, 0.0), "mean", False, False, torch.float32)
        assert weights.tolist() == [0.0, torch.inf, 0.0] and read.tolist() == [0, 2, 0]


def test_a_single_row_is_a_turn():
    for module in (native, reference):
        *_, weights, _ = module.row_weights(
            Tokens(torch.tensor(1)), (2.0, 1.0, 0.0), "turn_mean", False, False, torch.float32
        )
        assert weights.tolist() == [2.0]


@pytest.mark.parametrize("rows", [0, 1, 5000])
@pytest.mark.parametrize("stats", [False, True])
def test_sums(rows, stats):
    """Triton's sums against the reference in float64. A row of weight 0 may hold NaN."""
    generator = torch.Generator().manual_seed(0)
    kinds, weights = torch.arange(rows).remainder(4).to(torch.uint8), torch.rand(rows, generator=generator)
    weights[kinds == 0] = 0.0
    value, entropies = torch.rand(rows, generator=generator), torch.rand(2, rows, generator=generator)
    argmax = torch.randint(0, 3, (2, rows), generator=generator, dtype=torch.int32)
    values = RowValues(value, None, entropies if stats else None, argmax if stats else None)
    exact = RowValues(value.double(), None, entropies.double() if stats else None, argmax if stats else None)
    for got, want in zip(interpreted.row_sums(values, weights, kinds), reference.row_sums(exact, weights.double(), kinds)):
        assert got.shape == want.shape and got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=2e-7, atol=0)
    weights[:3], value[:3] = 0.0, math.nan
    assert interpreted.row_sums(values, weights, kinds)[0].isfinite()
