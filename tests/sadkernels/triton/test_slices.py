"""A few long rows split into slices: the results match those of whole rows, with the same bits on every run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sadkernels.divergence import DivergenceConfig, RowValues
from sadkernels.reference import span_kl as reference
from sadkernels.triton import span_kl, tiles
from tests.sadkernels.triton.row_helpers import absolute, assert_gradient, assert_values, split_rows_into

INF = float("inf")
V = 203
KINDS = torch.tensor([1, 0, 2, 1], dtype=torch.uint8)
WEIGHTS = torch.tensor([0.5, 1.0, -2.0, 0.0])
CONFIGS = {
    "forward_kl": DivergenceConfig(V, 0.8),
    "reverse_kl": DivergenceConfig(V, 1.2, "reverse_kl", teacher_softcap=6.0),
    "jsd": DivergenceConfig(V, 1.0, "jsd", 0.2, student_scale=0.5, student_softcap=8.0),
}


def _logits(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(x.to(device) for x in (3 * torch.randn(4, V), 3 * torch.randn(4, V), KINDS, WEIGHTS))


def _all_results(
    device: torch.device, config: DivergenceConfig, logits: tuple[Tensor, ...]
) -> tuple[RowValues, Tensor, Tensor]:
    """Returns values with statistics, the gradient of `forward_backward`, and the gradient of `backward`."""
    s, t, kinds, weights = logits
    fused_grad, grad = (torch.full_like(s, torch.nan) for _ in range(2))
    values = span_kl.forward(s, t, kinds, config, stats=True)
    span_kl.backward(s, t, kinds, values.state, weights, config, grad=grad)
    span_kl.forward_backward(s, t, kinds, weights, config, stats=False, grad=fused_grad)
    return values, fused_grad, grad


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_slices_match_whole_rows_and_repeat_bit_for_bit(config, device, monkeypatch):
    logits = _logits(device)
    s, t, kinds, _ = logits
    exact = reference.forward(*(x.double().cpu() for x in (s, t)), KINDS, config, stats=True)
    exact_grad = torch.empty(4, V, dtype=torch.float64)
    reference.backward(*(x.double().cpu() for x in (s, t)), KINDS, exact.state, WEIGHTS.double(), config, grad=exact_grad)
    split_rows_into(monkeypatch, 72)
    values, fused_grad, grad = first = _all_results(device, config, logits)
    assert_values(values, exact, config)
    assert_gradient(fused_grad, exact_grad)
    assert_gradient(grad, exact_grad)
    torch.testing.assert_close(
        absolute(span_kl.log_sum_exps(s, t, kinds, config), config), absolute(exact.state, config), rtol=1e-6, atol=1e-6
    )
    again = _all_results(device, config, logits)
    for one, other in zip((*first[0], *first[1:]), (*again[0], *again[1:])):
        assert torch.equal(one, other)


@pytest.mark.parametrize("slice_columns", [None, 56], ids=["whole", "sliced"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_results_of_vocabulary_shards_add_up(config, slice_columns, device, monkeypatch):
    """Given the log-sum-exps, the results of two halves of the columns add up to those of all columns."""
    s, t, kinds, _ = _logits(device)
    exact = reference.forward(*(x.double().cpu() for x in (s, t)), KINDS, config, stats=True)
    if slice_columns:
        split_rows_into(monkeypatch, slice_columns)
    lse = absolute(exact.state, config).float().to(device)
    lse = torch.cat([lse, torch.zeros_like(lse)])  # the origins are 0
    shards = []
    for part in (slice(0, 96), slice(96, V)):
        half = config._replace(vocab_size=s[:, part].shape[1])
        shards.append(span_kl.forward(s[:, part], t[:, part], kinds, half, stats=True, lse=lse))
        assert torch.equal(shards[-1].state[:2], lse[:2])
    one, other = shards
    torch.testing.assert_close((one.value + other.value).double().cpu(), exact.value, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close((one.state[2] + other.state[2]).double().cpu(), exact.state[2], rtol=2e-6, atol=1e-6)
    torch.testing.assert_close((one.entropies + other.entropies).double().cpu(), exact.entropies, rtol=5e-6, atol=2e-6)


def test_argmax_ties_go_to_the_lowest_slice(device, monkeypatch):
    """The rows have ties across slices, a NaN, slices of only -inf, and one row of only -inf."""
    s = torch.randn(6, V)
    s[0, [50, 130, 190]] = 9.0
    s[1, :100], s[1, 170] = -INF, 9.0
    s[2, 100:] = -INF
    s[3] = -INF
    s[4, 101], s[4, 30] = torch.nan, 9.0
    s[5, [39, 40]] = 9.0  # adjacent columns in two slices
    split_rows_into(monkeypatch, 40)
    kinds = torch.ones(6, dtype=torch.uint8, device=device)
    values = span_kl.forward(s.to(device), s.to(device), kinds, DivergenceConfig(V), stats=True)
    assert values.argmax[0].tolist() == [50, 170, s[2].argmax(), 0, 101, 39]
    assert torch.equal(values.argmax[0], values.argmax[1])
    assert values.value[[0, 1, 2, 5]].tolist() == [0.0] * 4 and values.value[[3, 4]].isnan().all()
    exact = torch.logsumexp(s.double(), -1)
    log_sum_exps = absolute(values.state, DivergenceConfig(V)).double().cpu()[0, [0, 1, 2, 5]]
    torch.testing.assert_close(log_sum_exps, exact[[0, 1, 2, 5]], rtol=1e-6, atol=1e-6)


def test_slice_rows_splits_only_a_few_long_rows():
    """Slices are whole blocks, none is empty, and there is at most one per program."""
    grid = tiles.Grid(tiles.two_pass_tiles(torch.bfloat16, torch.bfloat16, fits_64_registers=True)["pair"], 264)  # an H100's
    for n in (1, 3, 8, 60, 132):
        count, columns = tiles.slice_rows(n, 151936, grid)
        assert 2 <= count <= tiles.MAX_SLICES and count * n <= grid.programs
        assert columns % grid.tile.columns == 0 and (count - 1) * columns < 151936 <= count * columns
    assert tiles.slice_rows(133, 151936, grid) == (1, 151936)
    assert tiles.slice_rows(4, 8192, grid) == (1, 8192)


def test_the_launcher_splits_one_long_row(device):
    """The launcher decides itself, and uses the tile that a GPU would use."""
    s, t = torch.randn(1, 16900, device=device), torch.randn(1, 16900, device=device)
    kinds, weights = torch.ones(1, dtype=torch.uint8, device=device), torch.ones(1, device=device)
    grad = torch.empty_like(s)
    config = DivergenceConfig(16900)
    value = span_kl.forward_backward(s, t, kinds, weights, config, stats=False, grad=grad).value
    exact = reference.forward(s.double(), t.double(), kinds, config, stats=False)
    torch.testing.assert_close(value.double(), exact.value, rtol=2e-6, atol=0)
    torch.testing.assert_close(grad.double(), s.double().softmax(-1) - t.double().softmax(-1), rtol=1e-5, atol=1e-9)
