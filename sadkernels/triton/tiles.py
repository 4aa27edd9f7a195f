"""Every tile size and grid of the Triton kernels, with its reason.

A block of a row is `groups` groups of `group` columns; one thread holds one group, which is one 16-byte access per tensor
(two where the other tensor has narrower elements). The loops keep the next block on its way while they compute: 32 bytes per
thread from two tensors, 32 KB per SM at 1024 threads, a little more than latency times bandwidth asks of an SM of an H200.
Two groups per thread would need more than 64 registers, and then 1024 threads no longer fit an SM.

The second and third pass cost no memory traffic if they find their row in L2. Programs are at different stages of their
rows; on average half of a pair is still to be read again, so what must fit is programs x half a pair (bfloat16, megabytes):

    card            SMs    L2   V 50257: half a pair 0.10         V 151936: half a pair 0.30
    A100, sm_80     108    40   pair, 216 programs: 22            crowded, 108: 33, a little over the 0.7 that is safe
    A6000, sm_86     84     6   crowded, on 43 programs: 4.3      out of reach, 84 programs: 26; the passes read memory
    4090, sm_89     128    72   pair, 256 programs: 26            crowded, 128: 39
    H100, sm_90     132    50   pair, 264 programs: 27            crowded, 132: 40, a little over 0.7
    H200, sm_90     132    60   pair, 264 programs: 27            crowded, 132: 40

The A6000 can leave half of its SMs idle because its memory feeds a pair of columns per 1.2 clocks of an SM, and the
arithmetic of one pass takes some 0.5: cards with GDDR memory are bound by it at half their SMs too, those with HBM are not.

The reasons are derived, and checked offline where a compiler can tell (`benchmarks/offline_checks.py`: registers, spills,
access widths). None of them has been timed yet.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

_SHORT_ROW = 4096  # columns; up to here 16 warps would have one or two blocks each, and row reductions across them cost more
_L2_SHARE = 0.7  # what rows in flight may take of it; the gradient passes through the rest
_GDDR = ((8, 6), (8, 9), (12, 0))  # compute capabilities with more arithmetic than their memory can feed
_INTERPRETED_PROGRAMS = 2  # so that each walks several rows
_WORTH_SLICING = 16384  # columns; one program takes some 15 us for them, the launches that slicing adds some 3 us each
MAX_SLICES = 64  # what one program merges in a vector
_MOST_WARPS = 32 if torch.version.hip is None else 16  # of 32 threads, of 64 on AMD
_REGISTERS = 65536  # of an SM, on every card


class RowTile(NamedTuple):
    """How one program walks a row.

    `group` columns are one thread's share of a block, `warps` the program's width, `registers` the most a thread may take.
    """

    name: str
    group: int
    warps: int
    registers: int

    @property
    def groups(self) -> int:
        """Groups per block: one for each of 32 threads of a warp."""
        return 32 * self.warps

    @property
    def columns(self) -> int:
        """Columns per block."""
        return self.groups * self.group

    @property
    def per_processor(self) -> int:
        """Programs that an SM holds at a time."""
        return _REGISTERS // (32 * self.warps * self.registers)


def group_size(*dtypes: torch.dtype) -> int:
    """8 columns when a tensor has 2-byte elements, so that its access is 16 bytes wide; 4 when all have 4 bytes."""
    return 16 // min(dtype.itemsize for dtype in dtypes)


def one_pass_tiles(*dtypes: torch.dtype) -> dict[str, RowTile]:
    """The tiles of kernels that read a row once.

    short: 4 warps for rows of a few blocks; a few such programs fill an SM.
    stream: 16 warps; nothing is kept between passes, so as many programs per SM as fit.
    """
    group = group_size(*dtypes)
    return _by_name(RowTile("short", group, 4, 64), RowTile("stream", group, 16, 64))


def two_pass_tiles(student: torch.dtype, teacher: torch.dtype, lean: bool) -> dict[str, RowTile]:
    """The tiles of kernels that read two rows twice, or three times.

    short: 4 warps for rows of a few blocks: little to reduce across.
    pair: 16 warps at 64 registers: two programs per SM, one of which computes while the other begins or ends a row.
    crowded: 32 warps at 64 registers: one program per SM, half the rows in flight.
    roomy: 16 warps at 128 registers, one program per SM, for what spills at 64: both argmax, soft caps and jsd (not
        `lean`), and a student with wider elements than its teacher, whose gradient is rearranged for wide stores. A teacher
        with wider elements spills as a pair on sm_100 but not crowded, and needs 80 registers on short rows.
    """
    group = group_size(student, teacher)
    if not lean or student.itemsize > teacher.itemsize:
        return _by_name(RowTile("short", group, 4, 128), RowTile("roomy", group, 16, 128))
    crowded = RowTile("crowded", group, _MOST_WARPS, 64)
    if student.itemsize < teacher.itemsize:
        return _by_name(RowTile("short", group, 4, 80), crowded)
    return _by_name(RowTile("short", group, 4, 64), RowTile("pair", group, 16, 64), crowded)


def _by_name(*tiles: RowTile) -> dict[str, RowTile]:
    return {tile.name: tile for tile in tiles}


class Grid(NamedTuple):
    """A tile and the number of programs that walk the rows on it."""

    tile: RowTile
    programs: int


class Slices(NamedTuple):
    """Into how many parts a row is cut, and the columns of each but the last."""

    count: int
    columns: int


class _Card(NamedTuple):
    processors: int
    l2: int
    gddr: bool


@functools.cache
def _card(device: torch.device) -> _Card:
    about = torch.cuda.get_device_properties(device)
    return _Card(about.multi_processor_count, about.L2_cache_size, (about.major, about.minor) in _GDDR)


def _capacity(tile: RowTile, device: torch.device) -> int:
    """Programs that run at a time. More would be right as well, but start late."""
    return _card(device).processors * tile.per_processor if device.type == "cuda" else _INTERPRETED_PROGRAMS


def one_pass_grid(columns: int, device: torch.device, *dtypes: torch.dtype) -> Grid:
    """For rows of `columns` columns that are read once."""
    tile = one_pass_tiles(*dtypes)["short" if columns <= _SHORT_ROW else "stream"]
    return Grid(tile, _capacity(tile, device))


def two_pass_grid(columns: int, student: torch.dtype, teacher: torch.dtype, lean: bool, device: torch.device) -> Grid:
    """For pairs of rows of `columns` columns that are read two or three times; as many rows in flight as L2 holds."""
    tiles = two_pass_tiles(student, teacher, lean)
    tile = tiles["short"] if columns <= _SHORT_ROW else _wide(tiles)
    programs = _capacity(tile, device)
    if device.type != "cuda":
        return Grid(tile, programs)
    card = _card(device)
    fit = int(_L2_SHARE * card.l2 / (columns * (student.itemsize + teacher.itemsize) / 2))
    if tile.name == "pair" and fit < programs:
        tile = tiles["crowded"]
        programs = _capacity(tile, device)
    if card.gddr and programs // 2 <= fit < programs:
        programs = fit
    return Grid(tile, programs)


def sliced_grid(student: torch.dtype, teacher: torch.dtype, lean: bool, device: torch.device) -> Grid:
    """For slices of rows: the wide tile, since all of a card must work on few rows, and these fit L2 wherever slices do."""
    tile = _wide(two_pass_tiles(student, teacher, lean))
    return Grid(tile, _capacity(tile, device))


def _wide(tiles: dict[str, RowTile]) -> RowTile:
    return next(tile for name, tile in tiles.items() if name != "short")


def slice_rows(n_rows: int, columns: int, grid: Grid) -> Slices:
    """How rows are cut where a program for each would leave most of the card idle: not at all, or into whole blocks.

    N counts all rows, supervised or not, since nobody waits for the device to tell. From half as many rows as programs on,
    cutting them would not shorten the longest program by half, and passes that alternate by launch lose L2.
    """
    count = min(grid.programs // n_rows, columns // grid.tile.columns, MAX_SLICES)
    if count < 2 or columns < _WORTH_SLICING:
        return Slices(1, columns)
    blocks = -(-columns // (count * grid.tile.columns))
    size = blocks * grid.tile.columns
    return Slices(-(-columns // size), size)
