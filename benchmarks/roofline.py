"""The GPUs of the offline roofline, the kernels that it covers, and the gate on their instruction counts.

Everything here is derived from machine code and data sheets. Nothing is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

Row = Mapping[str, object]
PIPES = ("issue", "fma", "alu", "mufu", "lsu")
TOLERATED_GROWTH = 1.05
# A large copy reads and writes at 0.9 of the bandwidth in the data sheet: 3.0 of 3.35 TB/s on an H100 SXM and 4.3 of 4.8
# TB/s on an H200, measured with PyTorch. Fractions are relative to the copy, as `copy_fraction` of the benchmark is.
COPY_SHARE = 0.9


class Card(NamedTuple):
    """One GPU.

    Args:
        name: Its name.
        architecture: The architecture that its kernels are compiled for, such as "sm_90".
        sms: Streaming multiprocessors.
        clock_ghz: Boost clock.
        memory_gb_per_s: Memory bandwidth of the data sheet.
        fma_lanes: float32 results per SM and clock.
    """

    name: str
    architecture: str
    sms: int
    clock_ghz: float
    memory_gb_per_s: float
    fma_lanes: int = 128

    @property
    def lanes(self) -> dict[str, int]:
        """Thread instructions per SM and clock: what 4 schedulers issue (a warp of 32 each), and what each pipe executes."""
        return {"issue": 128, "fma": self.fma_lanes, "alu": 64, "mufu": 16, "lsu": 32}


# SMs, boost clock and bandwidth: NVIDIA's data sheets and architecture white papers of A100 80GB SXM, RTX A6000, L40S, RTX
# 4090, H100 SXM5, H200 SXM, B200 (HGX) and RTX 5090. Lanes: "Throughput of Native Arithmetic Instructions" in the CUDA C++
# Programming Guide: float32 64 on 8.0 and 128 on 8.6 and newer; 32-bit integer and compare 64; special functions 16. The
# load/store pipe moves 128 bytes per SM and clock between L1 or shared memory and registers, 32 lanes of 4 bytes. sm_120 may
# execute integers on 128 lanes; 64 is the cautious number.
CARDS = (
    Card("A100", "sm_80", 108, 1.41, 2039, fma_lanes=64),
    Card("A6000", "sm_86", 84, 1.80, 768),
    Card("L40S", "sm_89", 142, 2.52, 864),
    Card("4090", "sm_89", 128, 2.52, 1008),
    Card("H100", "sm_90", 132, 1.98, 3350),
    Card("H200", "sm_90", 132, 1.98, 4800),
    Card("B200", "sm_100", 148, 1.965, 8000),
    Card("5090", "sm_120", 170, 2.41, 1792),
)


class HotKernel(NamedTuple):
    """A kernel whose loops take most of the time of a training step's loss.

    Args:
        label: What it computes, for tables and plots.
        backend: "triton" or "cuda".
        kernel: Its name in the CSV of `offline_checks.py` or `cuda_build.py`.
        dtype: Dtype of the logits of both sides.
        moved: Elements per column that it moves between memory and the GPU, if later passes find the row in a cache.
        divergence: Of a Triton kernel, which is compiled for one divergence.
        tiles: Of a Triton kernel: names of tiles, of which an architecture has one.
    """

    label: str
    backend: str
    kernel: str
    dtype: str
    moved: int
    divergence: str = ""
    tiles: tuple[str, ...] = ()

    def is_row(self, row: Row) -> bool:
        """Whether a row of `offline_checks.py` or `cuda_build.py` describes this kernel."""
        if row["kernel"] != self.kernel:
            return False
        if self.backend == "cuda":
            return "file" in row
        dtypes = f"{self.dtype}/{self.dtype}"
        found = row.get("divergence"), row.get("student/teacher"), row.get("capped")
        return found == (self.divergence, dtypes, "") and row.get("tile") in self.tiles

    @property
    def bytes_per_column(self) -> int:
        """Bytes per column that it moves between memory and the GPU."""
        return self.moved * (4 if self.dtype == "fp32" else 2)


def _triton(label: str, kernel: str, dtype: str, *tiles: str, divergence: str = "forward_kl") -> HotKernel:
    return HotKernel(label, "triton", kernel, dtype, 3, divergence, tiles)


HOT_TRITON = (
    _triton("KL and gradient", "forward_backward", "bf16", "pair"),
    _triton("KL and gradient", "forward_backward", "fp32", "pair"),
    _triton("KL, gradient, statistics", "forward_backward, stats", "bf16", "pair", "roomy"),
    _triton("reverse KL and gradient", "forward_backward", "bf16", "pair", divergence="reverse_kl"),
    _triton("JSD and gradient", "forward_backward", "bf16", "roomy", divergence="jsd"),
    _triton("gradient", "backward", "bf16", "stream"),
)
HOT_CUDA = tuple(
    HotKernel(label, "cuda", kernel.format(name), dtype, moved)
    for dtype, name in (("bf16", "Bfloat16"), ("fp32", "float"))
    for label, kernel, moved in (
        ("KL and gradient, streamed", "streamed_rows_kernel<{}, forward, false>", 3),
        ("KL and gradient, resident", "resident_rows_kernel<{}, forward, false>", 3),
        ("KL, gradient, statistics, streamed", "streamed_rows_kernel<{}, forward, true>", 3),
        ("KL, gradient, statistics, resident", "resident_rows_kernel<{}, forward, true>", 3),
        ("reverse KL, gradient, statistics, streamed", "streamed_rows_kernel<{}, reverse, true>", 3),
        ("reverse KL, gradient, statistics, resident", "resident_rows_kernel<{}, reverse, true>", 3),
        ("JSD, gradient, statistics, streamed", "streamed_rows_kernel<{}, jsd, true>", 3),
        ("JSD, gradient, statistics, resident", "resident_rows_kernel<{}, jsd, true>", 3),
        ("gradient", "gradient_kernel<{}, forward>", 3),
        ("top-k KL and gradient", "topk_rows_kernel<{}, true, false>", 2),
    )
)
HOT_KERNELS = HOT_TRITON + HOT_CUDA
COUNTED = ("passes", *(f"{pipe}_per_column" for pipe in PIPES), "narrow_in_passes", "calls_in_passes", "spilled_bytes")


def roofline_rows(compiled: Iterable[Row]) -> list[dict[str, object]]:
    """Returns one row per hot kernel and card, from rows of `offline_checks.py` and `cuda_build.py`."""
    compiled = list(compiled)
    rows = []
    for hot in HOT_KERNELS:
        for card in CARDS:
            for row in compiled:
                if hot.is_row(row) and row["architecture"] == card.architecture:
                    rows.append(_row(hot, card, row))
    return rows


def _row(hot: HotKernel, card: Card, compiled: Row) -> dict[str, object]:
    columns_per_s = COPY_SHARE * card.memory_gb_per_s * 1e9 / hot.bytes_per_column
    shares = {}
    for pipe, lanes in card.lanes.items():
        available = card.sms * card.clock_ghz * 1e9 * lanes
        shares[pipe] = float(compiled[f"{pipe}_per_column"]) * columns_per_s / available
    busiest = max(shares, key=shares.__getitem__)
    return {
        "label": hot.label,
        "backend": hot.backend,
        "kernel": hot.kernel,
        "divergence": hot.divergence,
        "dtype": hot.dtype,
        "card": card.name,
        "architecture": card.architecture,
        "compiler": compiled["compiler"],
        "registers": compiled["registers"],
        **{name: compiled[name] for name in COUNTED},
        "bytes_per_column": hot.bytes_per_column,
        **{f"{pipe}_share": round(share, 3) for pipe, share in shares.items()},
        "bound_by": busiest if shares[busiest] > 1 else "memory",
        "copy_fraction_at_most": round(min(1.0, 1 / shares[busiest]), 3),
    }


def regressions(compiled: Iterable[Row], committed: Iterable[Row]) -> tuple[list[str], int]:
    """Compares compiled kernels with the committed roofline.

    Args:
        compiled: Rows of `offline_checks.py` or `cuda_build.py`.
        committed: Rows of `gpu_roofline_offline.csv`. Those of another compiler are not compared.

    Returns:
        The regressions in words, and how many kernels were compared.
    """
    key = ("backend", "kernel", "divergence", "dtype", "architecture", "compiler")
    expected = {tuple(row[name] for name in key): row for row in committed}
    worse, compared = [], 0
    for row in compiled:
        for hot in (hot for hot in HOT_KERNELS if hot.is_row(row)):
            before = expected.get(_key(hot, row))
            if before is None:
                continue
            compared += 1
            worse += [f"{hot.kernel}, {hot.dtype}, {row['architecture']}: {x}" for x in _grown(before, row)]
    return worse, compared


def _key(hot: HotKernel, row: Row) -> tuple[object, ...]:
    return hot.backend, hot.kernel, hot.divergence, hot.dtype, row["architecture"], row["compiler"]


def _grown(before: Row, now: Row) -> list[str]:
    found = []
    for name in COUNTED:
        was, is_now = float(before[name]), float(now[name])
        limit = was * TOLERATED_GROWTH if name.endswith("_per_column") else was
        if is_now > limit:
            found.append(f"{name} is {is_now:g}, was {was:g}")
        elif name == "passes" and is_now != was:
            found.append(f"passes is {is_now:g}, was {was:g}: a loop was not recognized")
    return found
