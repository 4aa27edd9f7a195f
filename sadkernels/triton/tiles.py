"""Every tile size and grid of the Triton kernels, with its reason.

A program processes a row in blocks of `groups` groups of `group` columns. One thread holds one group, which is one 16-byte
access per tensor (two accesses if the other tensor has narrower elements). The loops load the next block while they compute:
32 bytes per thread from two tensors, so 32 KB per SM at 1024 threads. That is slightly more than latency times bandwidth of
an SM of an H200. Two groups per thread need more than 64 registers, and then 1024 threads no longer fit on an SM.

The second and the third pass over a row cause no memory traffic if the row is still in L2. Programs are at different stages
of their rows, so on average half of a pair of rows remains to be read again. Therefore programs x half a pair must fit in L2
(bfloat16, MB):

    GPU             SMs    L2   V 50257: half a pair 0.10         V 151936: half a pair 0.30
    A100, sm_80     108    40   pair, 216 programs: 22            crowded, 108: 33, slightly more than 0.7 of L2
    A6000, sm_86     84     6   crowded, 43 programs: 4.3         does not fit, 84 programs: 26; the passes read memory
    4090, sm_89     128    72   pair, 256 programs: 26            crowded, 128: 39
    H100, sm_90     132    50   pair, 264 programs: 27            crowded, 132: 40, slightly more than 0.7 of L2
    H200, sm_90     132    60   pair, 264 programs: 27            crowded, 132: 40

The A6000 can leave half of its SMs idle: its memory delivers a pair of columns per 1.2 clocks of an SM, and the arithmetic
of one pass needs about 0.5. The same holds for other GPUs with GDDR memory, but not for those with HBM.

The sizes are derived, and checked by compilation (`benchmarks/offline_checks.py`: registers, spills, access widths). They
are not yet timed on a GPU. On a GPU that `sad tune` has measured, its choices replace the tile and the number of programs.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from sadkernels import tuning

_SHORT_ROW = 4096  # columns; up to here 16 warps process only one or two blocks, and reductions across 16 warps cost more
_L2_SHARE = 0.7  # share of L2 for the rows in flight; the gradient passes through the rest
_GDDR = ((8, 6), (8, 9), (12, 0))  # compute capabilities whose memory feeds only half of the SMs
_INTERPRETED_PROGRAMS = 2  # few, so that each program processes several rows
_MIN_SLICED_COLUMNS = 16384  # estimate: one program needs 15 us for them, each additional launch 3 us
MAX_SLICES = 64  # one program merges the slices of a row in a vector
_MAX_WARPS = 32 if torch.version.hip is None else 16  # warps of 32 threads, 64 on AMD
_REGISTERS = 65536  # per SM, on every GPU


class RowTile(NamedTuple):
    """How one program processes a row.

    Args:
        name: Name of the tile, see `one_pass_tiles` and `two_pass_tiles`.
        group: Columns of a block per thread.
        warps: Warps of the program.
        registers: Maximum registers per thread.
    """

    name: str
    group: int
    warps: int
    registers: int

    @property
    def groups(self) -> int:
        """Groups per block: one per thread, for 32 threads per warp."""
        return 32 * self.warps

    @property
    def columns(self) -> int:
        """Columns per block."""
        return self.groups * self.group

    @property
    def per_sm(self) -> int:
        """Programs that fit on an SM at a time."""
        return _REGISTERS // (32 * self.warps * self.registers)


def group_size(*dtypes: torch.dtype) -> int:
    """Returns 8 columns if a tensor has 2-byte elements, so that its access is 16 bytes wide, and 4 if all have 4 bytes."""
    return 16 // min(dtype.itemsize for dtype in dtypes)


def one_pass_tiles(*dtypes: torch.dtype) -> dict[str, RowTile]:
    """Returns the tiles of kernels that read a row once.

    short: 4 warps for rows of a few blocks; several such programs fill an SM.
    stream: 16 warps; no pass reuses the caches, so as many programs per SM as fit.
    """
    group = group_size(*dtypes)
    return _by_name(RowTile("short", group, 4, 64), RowTile("stream", group, 16, 64))


def two_pass_tiles(student: torch.dtype, teacher: torch.dtype, fits_64_registers: bool) -> dict[str, RowTile]:
    """Returns the tiles of kernels that read two rows two or three times.

    short: 4 warps for rows of a few blocks, so reductions cross few warps.
    pair: 16 warps at 64 registers, two programs per SM: one computes while the other starts or ends a row.
    crowded: 32 warps at 64 registers, one program per SM: half the rows in flight.
    roomy: 16 warps at 128 registers, one program per SM, for kernels that spill at 64 registers.

    A student with wider elements than its teacher spills at 64 registers too, because its gradient is rearranged for wide
    stores. A teacher with wider elements spills in "pair" on sm_100 but not in "crowded", and needs 80 registers in "short".

    Args:
        student: Dtype of the student's logits.
        teacher: Dtype of the teacher's logits.
        fits_64_registers: Whether the kernel runs on 64 registers per thread without spills.
    """
    group = group_size(student, teacher)
    if not fits_64_registers or student.itemsize > teacher.itemsize:
        return _by_name(RowTile("short", group, 4, 128), RowTile("roomy", group, 16, 128))
    crowded = RowTile("crowded", group, _MAX_WARPS, 64)
    if student.itemsize < teacher.itemsize:
        return _by_name(RowTile("short", group, 4, 80), crowded)
    return _by_name(RowTile("short", group, 4, 64), RowTile("pair", group, 16, 64), crowded)


def _by_name(*tiles: RowTile) -> dict[str, RowTile]:
    return {tile.name: tile for tile in tiles}


class Grid(NamedTuple):
    """A tile, and the number of programs that process the rows with it.

    Args:
        tile: The tile.
        programs: Number of programs.
        waves: How often the slices of a few rows occupy the programs; 0 if rows are never sliced.
    """

    tile: RowTile
    programs: int
    waves: int = 1


class Slices(NamedTuple):
    """The number of slices of a row, and the columns of each slice except the last."""

    count: int
    columns: int


class _Gpu(NamedTuple):
    sms: int
    l2_bytes: int
    gddr: bool


@functools.cache
def _gpu(device: torch.device) -> _Gpu:
    properties = torch.cuda.get_device_properties(device)
    gddr = (properties.major, properties.minor) in _GDDR
    return _Gpu(properties.multi_processor_count, properties.L2_cache_size, gddr)


@functools.cache
def compute_capability(device: torch.device) -> int:
    """Returns the compute capability of a GPU, such as 90, or 0 for other devices."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _capacity(tile: RowTile, device: torch.device) -> int:
    """Returns how many programs run at a time. More programs would also be correct, but would start late."""
    return _gpu(device).sms * tile.per_sm if device.type == "cuda" else _INTERPRETED_PROGRAMS


def one_pass_grid(columns: int, device: torch.device, *dtypes: torch.dtype) -> Grid:
    """Returns the grid for rows of `columns` columns that are read once."""
    tiles = one_pass_tiles(*dtypes)
    if chosen := tuning.choice("triton.one_pass", device, columns, *dtypes):
        return _chosen_grid(chosen, tiles, device)
    tile = tiles["short" if columns <= _SHORT_ROW else "stream"]
    return Grid(tile, _capacity(tile, device))


def _chosen_grid(chosen: tuning.Choice, tiles: dict[str, RowTile], device: torch.device) -> Grid:
    tile = tiles[chosen["tile"]]
    return Grid(tile, max(1, int(chosen["share"] * _capacity(tile, device))))


def two_pass_grid(
    columns: int,
    student: torch.dtype,
    teacher: torch.dtype,
    fits_64_registers: bool,
    device: torch.device,
    *,
    topk: bool = False,
) -> Grid:
    """Returns the grid for pairs of rows that are read two or three times, with as many rows in flight as fit in L2."""
    tiles = two_pass_tiles(student, teacher, fits_64_registers)
    setting = "triton.topk" if topk else "triton.lean" if fits_64_registers else "triton.roomy"
    if chosen := tuning.choice(setting, device, columns, student, teacher):
        return _chosen_grid(chosen, tiles, device)
    tile = tiles["short"] if columns <= _SHORT_ROW else _wide(tiles)
    programs = _capacity(tile, device)
    if device.type != "cuda":
        return Grid(tile, programs)
    gpu = _gpu(device)
    fit = int(_L2_SHARE * gpu.l2_bytes / (columns * (student.itemsize + teacher.itemsize) / 2))
    if tile.name == "pair" and fit < programs:
        tile = tiles["crowded"]
        programs = _capacity(tile, device)
    if gpu.gddr and programs // 2 <= fit < programs:
        programs = fit
    return Grid(tile, programs)


def sliced_grid(
    columns: int, student: torch.dtype, teacher: torch.dtype, fits_64_registers: bool, device: torch.device
) -> Grid:
    """Returns the grid for slices of rows: the wide tile, so that a few rows occupy the whole GPU."""
    tile = _wide(two_pass_tiles(student, teacher, fits_64_registers))
    chosen = tuning.choice("triton.slices", device, columns, student, teacher) or {"waves": 1}
    return Grid(tile, _capacity(tile, device), chosen["waves"])


def _wide(tiles: dict[str, RowTile]) -> RowTile:
    return next(tile for name, tile in tiles.items() if name != "short")


def slice_rows(n_rows: int, columns: int, grid: Grid) -> Slices:
    """Returns how to split rows: into slices of whole blocks if one program per row would leave most of the GPU idle.

    `n_rows` counts all rows, supervised or not, because the number of supervised rows is only on the device. Rows stay whole
    from half as many rows as programs on: slices would not halve the time of the longest program, and passes in separate
    launches lose the rows in L2.
    """
    count = min(grid.waves * grid.programs // n_rows, columns // grid.tile.columns, MAX_SLICES)
    if grid.programs // n_rows < 2 or count < 2 or columns < _MIN_SLICED_COLUMNS:
        return Slices(1, columns)
    blocks = -(-columns // (count * grid.tile.columns))
    size = blocks * grid.tile.columns
    return Slices(-(-columns // size), size)
