"""The tile and the grid follow from the length of the rows and from the card."""

from __future__ import annotations

import pytest
import torch

from sadkernels.triton import tiles

FP32, BF16 = torch.float32, torch.bfloat16
CUDA = torch.device("cuda")
A100, A6000, RTX4090, H200 = (
    tiles._Card(108, 40 << 20, False),
    tiles._Card(84, 6 << 20, True),
    tiles._Card(128, 72 << 20, True),
    tiles._Card(132, 60 << 20, False),
)


@pytest.mark.parametrize(
    "card, columns, dtype, lean, name, programs",
    [
        (H200, 50257, BF16, True, "pair", 264),  # 27 MB to be read again
        (H200, 151936, BF16, True, "crowded", 132),  # two programs per SM would hold 80 MB
        (H200, 151936, BF16, False, "roomy", 132),
        (H200, 1000, BF16, True, "short", 1056),
        (A100, 50257, BF16, True, "pair", 216),
        (A100, 151936, BF16, True, "crowded", 108),
        (RTX4090, 50257, BF16, True, "pair", 256),
        (RTX4090, 151936, BF16, True, "crowded", 128),
        (RTX4090, 151936, FP32, True, "crowded", 86),  # its memory does not feed more, so L2 may decide
        (A6000, 8192, BF16, True, "pair", 168),
        (A6000, 50257, BF16, True, "crowded", 43),
        (A6000, 151936, BF16, True, "crowded", 84),  # half of the SMs would miss L2 as well
    ],
)
def test_rows_in_flight_fit_l2_where_they_can(card, columns, dtype, lean, name, programs, monkeypatch):
    monkeypatch.setattr(tiles, "_card", lambda device: card)
    grid = tiles.two_pass_grid(columns, dtype, dtype, lean, CUDA)
    assert (grid.tile.name, grid.programs) == (name, programs)


@pytest.mark.parametrize("student", [FP32, BF16], ids=str)
@pytest.mark.parametrize("teacher", [FP32, BF16], ids=str)
@pytest.mark.parametrize("lean", [True, False])
def test_threads_of_a_tile_fit_an_sm(student, teacher, lean):
    for tile in tiles.two_pass_tiles(student, teacher, lean).values():
        threads = 32 * tile.warps * tile.per_processor
        assert threads * tile.registers <= 65536 and threads >= 512
        assert tile.group * min(student.itemsize, teacher.itemsize) == 16
