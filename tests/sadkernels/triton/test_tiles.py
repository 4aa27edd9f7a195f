"""The choice of tile and grid from the length of the rows and the GPU."""

from __future__ import annotations

import pytest
import torch

from sadkernels.triton import tiles

FP32, BF16 = torch.float32, torch.bfloat16
CUDA = torch.device("cuda")
A100, A6000, RTX4090, H200 = (
    tiles._Gpu(108, 40 << 20, False),
    tiles._Gpu(84, 6 << 20, True),
    tiles._Gpu(128, 72 << 20, True),
    tiles._Gpu(132, 60 << 20, False),
)


@pytest.mark.parametrize(
    "gpu, columns, dtype, fits_64_registers, name, programs",
    [
        (H200, 50257, BF16, True, "pair", 264),  # 27 MB to read again
        (H200, 151936, BF16, True, "crowded", 132),  # two programs per SM would hold 80 MB
        (H200, 151936, BF16, False, "roomy", 132),
        (H200, 1000, BF16, True, "short", 1056),
        (A100, 50257, BF16, True, "pair", 216),
        (A100, 151936, BF16, True, "crowded", 108),
        (RTX4090, 50257, BF16, True, "pair", 256),
        (RTX4090, 151936, BF16, True, "crowded", 128),
        (RTX4090, 151936, FP32, True, "crowded", 86),  # memory cannot feed more programs, so L2 limits their number
        (A6000, 8192, BF16, True, "pair", 168),
        (A6000, 50257, BF16, True, "crowded", 43),
        (A6000, 151936, BF16, True, "crowded", 84),  # even half of the SMs would exceed L2
    ],
)
def test_rows_in_flight_fit_in_l2_if_possible(gpu, columns, dtype, fits_64_registers, name, programs, monkeypatch):
    monkeypatch.setattr(tiles, "_gpu", lambda device: gpu)
    grid = tiles.two_pass_grid(columns, dtype, dtype, fits_64_registers, CUDA)
    assert (grid.tile.name, grid.programs) == (name, programs)


@pytest.mark.parametrize("student", [FP32, BF16], ids=str)
@pytest.mark.parametrize("teacher", [FP32, BF16], ids=str)
@pytest.mark.parametrize("fits_64_registers", [True, False])
def test_the_programs_of_a_tile_fit_on_an_sm(student, teacher, fits_64_registers):
    for tile in tiles.two_pass_tiles(student, teacher, fits_64_registers).values():
        threads = 32 * tile.warps * tile.per_sm
        assert threads * tile.registers <= 65536 and threads >= 512
        assert tile.group * min(student.itemsize, teacher.itemsize) == 16
