"""Every tile size of the Triton kernels, with its reason.

A block of a row is `groups` groups of `group` columns; one thread holds one group, which is one 16-byte access per tensor
(two where the other tensor has narrower elements). The loops keep the next block on its way while they compute: 32 bytes per
thread from two tensors, 32 KB per SM at 1024 threads, a little more than latency times bandwidth asks of an SM of an H200.
Two groups per thread would need more than 64 registers, and then 1024 threads no longer fit an SM.

The reasons are derived, and checked offline where a compiler can tell (`benchmarks/offline_checks.py`: registers, spills,
access widths). None of them has been timed yet.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

_SHORT_ROW = 4096  # columns; up to here 16 warps would have one or two blocks each, and row reductions across them cost more
_L2_SHARE = 0.7  # what rows in flight may take of it; the gradient passes through the rest
_MOST_WARPS = 32 if torch.version.hip is None else 16  # of 32 threads, of 64 on AMD


class RowTile(NamedTuple):
    """How one program walks a row.

    `group` columns are one thread's share of a block, `warps` the program's width, `registers` the most a thread may take,
    or None.
    """

    name: str
    group: int
    warps: int
    registers: int | None = None

    @property
    def groups(self) -> int:
        """Groups per block: one for each of 32 threads of a warp."""
        return 32 * self.warps

    @property
    def columns(self) -> int:
        """Columns per block."""
        return self.groups * self.group


def group_size(*dtypes: torch.dtype) -> int:
    """8 columns when a tensor has 2-byte elements, so that its access is 16 bytes wide; 4 when all have 4 bytes."""
    return 16 // min(dtype.itemsize for dtype in dtypes)


def one_pass_tiles(*dtypes: torch.dtype) -> dict[str, RowTile]:
    """The tiles of kernels that read a row once.

    short: 4 warps for rows of a few blocks; a few such programs fill an SM.
    stream: 16 warps; nothing is kept between passes, so as many programs per SM as fit.
    """
    group = group_size(*dtypes)
    return _by_name(RowTile("short", group, 4), RowTile("stream", group, 16))


def two_pass_tiles(student: torch.dtype, teacher: torch.dtype, stats: bool) -> dict[str, RowTile]:
    """The tiles of kernels that read two rows twice.

    short: 4 warps for rows of a few blocks: little to reduce across.
    pair: 16 warps at 64 registers: two programs per SM, one of which computes while the other begins or ends a row. Not for
        a student with wider elements than its teacher: arranging its gradient for wide stores takes registers that
        sm_100 then spills.
    crowded: 32 warps, at 64 registers by themselves: one program per SM, half the rows in flight.
    statistics: 16 warps at 128 registers: tracking both argmax takes about 100, and without a limit ptxas may spill to
        reach 64.
    """
    group = group_size(student, teacher)
    short = RowTile("short", group, 4)
    if stats:
        return _by_name(short, RowTile("statistics", group, 16, registers=128))
    crowded = RowTile("crowded", group, _MOST_WARPS)
    if student.itemsize > teacher.itemsize:
        return _by_name(short, crowded)
    return _by_name(short, RowTile("pair", group, 16, registers=64), crowded)


def _by_name(*tiles: RowTile) -> dict[str, RowTile]:
    return {tile.name: tile for tile in tiles}


@functools.cache
def _processors_and_l2(device: torch.device) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.L2_cache_size


def one_pass_tile(columns: int, *dtypes: torch.dtype) -> RowTile:
    """The tile for rows of `columns` columns that are read once."""
    return one_pass_tiles(*dtypes)["short" if columns <= _SHORT_ROW else "stream"]


def two_pass_tile(columns: int, student: torch.dtype, teacher: torch.dtype, stats: bool, device: torch.device) -> RowTile:
    """The tile for pairs of rows of `columns` columns that are read twice.

    The second pass costs no memory traffic if it finds the rows in the caches. Rows are at different stages; on average half
    of a pair is still to be read again. Where two programs per SM hold more than L2 does, one program per SM holds less.
    """
    tiles = two_pass_tiles(student, teacher, stats)
    if columns <= _SHORT_ROW:
        return tiles["short"]
    if "pair" in tiles and device.type == "cuda":
        processors, l2 = _processors_and_l2(device)
        to_read_again = columns * (student.itemsize + teacher.itemsize) / 2
        if 2 * processors * to_read_again > _L2_SHARE * l2:
            return tiles["crowded"]
    return next(tile for name, tile in tiles.items() if name != "short")
