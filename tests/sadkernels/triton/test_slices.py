"""Few long rows: cut into slices, they give what they give whole, and the same bits every time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig, RowValues
from sadkernels.reference import span_kl as reference
from sadkernels.triton import span_kl, tiles
from tests.sadkernels.triton.rows import assert_gradient, assert_values, cut_into

INF = float("inf")
V = 203
KINDS = torch.tensor([1, 0, 2, 1], dtype=torch.uint8)
WEIGHTS = torch.tensor([0.5, 1.0, -2.0, 0.0])
COMPARISONS = {
    "forward_kl": DivergenceConfig(V, 0.8),
    "reverse_kl": DivergenceConfig(V, 1.2, "reverse_kl", teacher_softcap=6.0),
    "jsd": DivergenceConfig(V, 1.0, "jsd", 0.2, student_scale=0.5, student_softcap=8.0),
}


def _logits(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(x.to(device) for x in (3 * torch.randn(4, V), 3 * torch.randn(4, V), KINDS, WEIGHTS))


def _everything(
    device: torch.device, config: DivergenceConfig, logits: tuple[Tensor, ...]
) -> tuple[RowValues, Tensor, Tensor]:
    """Values with statistics; the gradient made with them, and made after them."""
    s, t, kinds, weights = logits
    together, after = (torch.full_like(s, torch.nan) for _ in range(2))
    values = span_kl.forward(s, t, kinds, config, stats=True)
    span_kl.backward(s, t, kinds, values.state, weights, config, grad=after)
    span_kl.forward_backward(s, t, kinds, weights, config, stats=False, grad=together)
    return values, together, after


@pytest.mark.parametrize("config", COMPARISONS.values(), ids=COMPARISONS)
def test_slices_give_what_whole_rows_give_and_the_same_bits_again(config, device, monkeypatch):
    logits = _logits(device)
    s, t, kinds, _ = logits
    exact = reference.forward(*(x.double().cpu() for x in (s, t)), KINDS, config, stats=True)
    grad = torch.empty(4, V, dtype=torch.float64)
    reference.backward(*(x.double().cpu() for x in (s, t)), KINDS, exact.state, WEIGHTS.double(), config, grad=grad)
    cut_into(monkeypatch, 72)
    values, together, after = first = _everything(device, config, logits)
    assert_values(values, exact)
    assert_gradient(together, grad)
    assert_gradient(after, grad)
    torch.testing.assert_close(
        span_kl.log_sum_exps(s, t, kinds, config).cpu().double(), exact.state[:2], rtol=1e-6, atol=1e-6
    )
    again = _everything(device, config, logits)
    for one, other in zip((*first[0], *first[1:]), (*again[0], *again[1:])):
        assert torch.equal(one, other)


@pytest.mark.parametrize("slice_columns", [None, 56], ids=["whole", "sliced"])
@pytest.mark.parametrize("config", COMPARISONS.values(), ids=COMPARISONS)
def test_shares_of_a_vocabulary_add_up(config, slice_columns, device, monkeypatch):
    """With the log-sum-exps given, what two halves of the columns find sums to what the whole finds."""
    s, t, kinds, _ = _logits(device)
    exact = reference.forward(*(x.double().cpu() for x in (s, t)), KINDS, config, stats=True)
    if slice_columns:
        cut_into(monkeypatch, slice_columns)
    lse = exact.state[:2].float().to(device)
    shares = []
    for part in (slice(0, 96), slice(96, V)):
        half = config._replace(vocab_size=s[:, part].shape[1])
        shares.append(span_kl.forward(s[:, part], t[:, part], kinds, half, stats=True, lse=lse))
        assert torch.equal(shares[-1].state[:2], lse)
    one, other = shares
    torch.testing.assert_close((one.value + other.value).double().cpu(), exact.value, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close((one.state[2] + other.state[2]).double().cpu(), exact.state[2], rtol=2e-6, atol=1e-6)
    torch.testing.assert_close((one.entropies + other.entropies).double().cpu(), exact.entropies, rtol=5e-6, atol=2e-6)


def test_argmax_ties_go_to_the_lowest_slice(device, monkeypatch):
    """Ties across slices, a NaN behind an infinity, slices of nothing but -inf, and rows of nothing else."""
    s = torch.randn(6, V)
    s[0, [50, 130, 190]] = 9.0
    s[1, :100], s[1, 170] = -INF, 9.0
    s[2, 100:] = -INF
    s[3] = -INF
    s[4, 101], s[4, 30] = torch.nan, 9.0
    s[5, [39, 40]] = 9.0  # neighbours in two slices
    cut_into(monkeypatch, 40)
    kinds = torch.ones(6, dtype=torch.uint8, device=device)
    found = span_kl.forward(s.to(device), s.to(device), kinds, DivergenceConfig(V), stats=True)
    assert found.argmax[0].tolist() == [50, 170, s[2].argmax(), 0, 101, 39]
    assert torch.equal(found.argmax[0], found.argmax[1])
    assert found.value[[0, 1, 2, 5]].tolist() == [0.0] * 4 and found.value[[3, 4]].isnan().all()
    exact = torch.logsumexp(s.double(), -1)
    torch.testing.assert_close(found.state[0, [0, 1, 2, 5]].double().cpu(), exact[[0, 1, 2, 5]], rtol=1e-6, atol=1e-6)


def test_only_few_long_rows_are_cut():
    """Into whole blocks, at most one slice for each program, and none left empty."""
    grid = tiles.Grid(tiles.two_pass_tiles(torch.bfloat16, torch.bfloat16, lean=True)["pair"], 264)  # an H100's
    for n in (1, 3, 8, 60, 132):
        count, columns = tiles.slice_rows(n, 151936, grid)
        assert 2 <= count <= tiles.MAX_SLICES and count * n <= grid.programs
        assert columns % grid.tile.columns == 0 and (count - 1) * columns < 151936 <= count * columns
    assert tiles.slice_rows(133, 151936, grid) == (1, 151936)
    assert tiles.slice_rows(4, 8192, grid) == (1, 8192)


def test_rows_are_cut_where_they_are_few_without_being_told(device):
    """The launchers' own decision, on the tile that the GPU would use."""
    s, t = torch.randn(1, 16900, device=device), torch.randn(1, 16900, device=device)
    kinds, weights = torch.ones(1, dtype=torch.uint8, device=device), torch.ones(1, device=device)
    grad = torch.empty_like(s)
    config = DivergenceConfig(16900)
    value = span_kl.forward_backward(s, t, kinds, weights, config, stats=False, grad=grad).value
    exact = reference.forward(s.double(), t.double(), kinds, config, stats=False)
    torch.testing.assert_close(value.double(), exact.value, rtol=2e-6, atol=0)
    torch.testing.assert_close(grad.double(), s.double().softmax(-1) - t.double().softmax(-1), rtol=1e-5, atol=1e-9)
