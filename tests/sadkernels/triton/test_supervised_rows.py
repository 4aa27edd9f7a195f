"""The index of the rows to read, and the grid that walks it."""

from __future__ import annotations

import pytest
import torch

from sadkernels.divergence import DivergenceConfig
from sadkernels.triton import span_kl
from sadkernels.triton.launch import Launch
from sadkernels.triton.supervised_rows import collect_rows_kernel

BLOCK = 16


def _collect(kinds: torch.Tensor, weights: torch.Tensor | None, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Returns the index and the outputs. Guards surround the buffers, and the block is so small that N needs several."""
    n = kinds.numel()
    buffers = [torch.full((size + 8,), 7, dtype=dtype, device=device) for size, dtype in _sizes(n)]
    rows, value, state, entropies, argmax = buffers
    given = (kinds.to(device), None if weights is None else weights.to(device))
    collect_rows_kernel[(1,)](*given, rows, value, state, entropies, argmax, n, STATE_ROWS=3, BLOCK=BLOCK)
    for buffer, (size, _) in zip(buffers, _sizes(n)):
        assert (buffer[size:] == 7).all()
    return tuple(buffer[:size].cpu() for buffer, (size, _) in zip(buffers, _sizes(n)))


def _sizes(n: int) -> list[tuple[int, torch.dtype]]:
    return [
        (n + 2, torch.int32),
        (n, torch.float32),
        (3 * n, torch.float32),
        (2 * n, torch.float32),
        (2 * n, torch.int32),
    ]


@pytest.mark.parametrize("n", [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 3])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0], ids=["none", "some", "all"])
def test_rows_to_read_come_first_and_in_order(n, share, device):
    kinds = (torch.rand(n) < share).to(torch.uint8) * 2
    weights = torch.where(torch.rand(n) < 0.5, 0.0, torch.tensor([-1.0, torch.nan])[torch.arange(n) % 2])
    for w in (None, weights):
        read = (kinds != 0) if w is None else (kinds != 0) & (w != 0)
        rows, *outputs = _collect(kinds, w, device)
        count = int(rows[n])
        assert rows[n + 1] == 0  # no row is deferred
        assert rows[:count].tolist() == read.nonzero().flatten().tolist()
        assert rows[count:n].tolist() == (~read).nonzero().flatten().tolist()[::-1]
        for output in outputs:  # zeros on rows that are not read; the other rows are untouched
            assert torch.equal(output.view(-1, n), torch.where(read, 7, 0).to(output.dtype).expand(output.numel() // n, n))


def test_every_program_walks_several_rows(device, monkeypatch):
    """There are more rows than programs, in a number that the programs cannot share evenly; some rows are not read."""
    n, v = 11, 40
    launched = []
    run = Launch.run
    monkeypatch.setattr(Launch, "run", lambda self, device: (launched.append(self.programs), run(self, device)))
    s, t = torch.randn(n, v, device=device), torch.randn(n, v, device=device)
    for kinds in (torch.arange(n) % 3, torch.zeros(n), torch.ones(n)):
        kinds = kinds.to(torch.uint8).to(device)
        grad = torch.full_like(s, torch.nan)
        ones = torch.ones(n, device=device)
        value = span_kl.forward_backward(s, t, kinds, ones, DivergenceConfig(v), stats=False, grad=grad).value
        expected = torch.where(kinds[:, None] != 0, s.softmax(-1) - t.softmax(-1), 0)
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)
        assert ((value > 0) == (kinds != 0)).all() and (grad[kinds == 0] == 0).all()
    if device.type == "cpu":
        assert launched == [1, 2] * 3


def test_no_rows(device):
    s, kinds = torch.empty(0, 5, device=device), torch.empty(0, dtype=torch.uint8, device=device)
    config = DivergenceConfig(5)
    values = span_kl.forward(s, s, kinds, config, stats=True)
    assert all(x.shape[-1] == 0 for x in values)
    span_kl.backward(s, s, kinds, values.state, torch.empty(0, device=device), config, grad=s)
    span_kl.scale(s, kinds, torch.tensor(2.0, device=device))
    assert span_kl.log_sum_exps(s, s, kinds, config).shape[-1] == 0
