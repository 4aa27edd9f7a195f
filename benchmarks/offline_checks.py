"""What the compiler makes of every Triton kernel, for every architecture, without a GPU.

    python benchmarks/offline_checks.py [--arch 80 90] [--quick] [--out FILE]

Compiles what the launchers of `sadkernels.triton` would launch and reads the machine code: registers, spilled bytes, shared
memory, and how wide the loads and stores inside loops are (16 bytes is what they are written for). Exits with 1 when a
kernel spills, has a narrower access in a loop that walks a row, or asks for more shared memory than a block may have.

The full product of kernels, divergences, soft caps, dtypes, tiles and architectures is some 5000 compilations. Compiled on
every architecture: forward_kl's forward and backward in one, and its backward, with every pair of dtypes and every tile; the
same of the other divergences with every tile, dtypes in turn; all else with dtypes and tiles in turn. `--quick` compiles
every kernel and divergence once, with the architectures in turn as well, and forward_kl's forward and backward on all.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

if os.environ.pop("TRITON_INTERPRET", None):
    print("TRITON_INTERPRET is ignored: these kernels are compiled", file=sys.stderr)

import torch
from harness import RESULTS, write_csv
from machine_code import TYPES, figures

from sadkernels.divergence import DIVERGENCES, DivergenceConfig
from sadkernels.topk import TopkTarget, TopkValues
from sadkernels.triton import tiles
from sadkernels.triton.launch import Launch
from sadkernels.triton.span_ids import span_ids_launch
from sadkernels.triton.span_kl_launches import Outputs, Problem, backward_launches, forward_launches, scale_launches
from sadkernels.triton.topk_span_kl import topk_launches

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
SHARED_KB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # that a block may have
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = ((BF16, BF16), (FP32, FP32), (BF16, FP32), (FP16, FP16), (FP32, BF16))
V = 50257


class Variant(NamedTuple):
    """A kernel with what it is compiled for."""

    kernel: str
    architecture: int
    divergence: str = "forward_kl"
    capped: bool = False
    dtypes: tuple[torch.dtype, torch.dtype] = (BF16, BF16)
    tile: int = 0  # which of the kernel's tiles

    @property
    def name(self) -> str:
        student, teacher = (TYPES[dtype] for dtype in self.dtypes)
        return f"{self.kernel}, {self.divergence}{', capped' * self.capped}, {student}/{teacher}, sm_{self.architecture}"


def _empty(*shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _problem(variant: Variant, n: int, gradient: bool, given_lse: bool = False) -> Problem:
    student, teacher = (_empty(n, V, dtype=dtype) for dtype in variant.dtypes)
    cap = 30.0 if variant.capped else None
    config = DivergenceConfig(V, divergence=variant.divergence, student_softcap=cap, teacher_softcap=cap)
    return Problem(
        student,
        teacher,
        _empty(n, dtype=torch.uint8),
        config,
        _empty(n, V, dtype=student.dtype) if gradient else None,
        _empty(n) if gradient else None,
        _empty(2, n) if given_lse else None,
    )


def _outputs(n: int, stats: bool, state: bool) -> Outputs:
    statistics = (_empty(2, n), _empty(2, n, dtype=torch.int32)) if stats else (None, None)
    return Outputs(_empty(n), _empty(3, n) if state else None, *statistics)


_WHOLE, _SLICED = 4, 1  # rows; on a device without processors one row of V columns is cut into slices


def _whole(variant: Variant) -> list[Launch]:
    gradient = "backward" in variant.kernel
    problem = _problem(variant, _WHOLE, gradient, "given" in variant.kernel)
    if variant.kernel == "log_sum_exps":
        return forward_launches(problem, Outputs(state=_empty(2, _WHOLE)))
    return forward_launches(problem, _outputs(_WHOLE, "stats" in variant.kernel, not gradient))


def _sliced(variant: Variant) -> list[Launch]:
    gradient = "gradient" in variant.kernel
    outputs = _outputs(_SLICED, "stats" in variant.kernel, not gradient)
    return forward_launches(_problem(variant, _SLICED, gradient), outputs)


def _backward(variant: Variant) -> list[Launch]:
    return backward_launches(_problem(variant, _WHOLE, True), _empty(3, _WHOLE))


def _scale(variant: Variant) -> list[Launch]:
    return scale_launches(_empty(_WHOLE, V, dtype=variant.dtypes[0]), _empty(_WHOLE, dtype=torch.uint8), _empty())


def _topk(variant: Variant) -> list[Launch]:
    n, k = _WHOLE, 64
    problem = _problem(variant, n, "backward" in variant.kernel)
    target = TopkTarget(_empty(n, k, dtype=torch.int32), _empty(n, k), _empty(n), _empty(n, dtype=torch.int32), 0.5)
    values, given = TopkValues(_empty(n), _empty(2, n)), None
    if "stats" in variant.kernel:
        values = values._replace(entropy=_empty(n), argmax=_empty(n, dtype=torch.int32))
    if variant.kernel == "top-k backward":
        values, given = TopkValues(None, None), _empty(2, n)
    of_gradient = {"grad": problem.grad, "weights": problem.weights, "state_given": given}
    return topk_launches(problem.student, target, problem.kinds, problem.config, values, **of_gradient)


def _span_ids(variant: Variant) -> list[Launch]:
    integers = [_empty(*shape, dtype=torch.int64) for shape in ((1, 512, 2), (40,), (40,), (2,))]
    outputs = [_empty(1, 512, dtype=dtype) for dtype in (torch.uint8, torch.bool, torch.bool)]
    kinds = _empty(40, dtype=torch.uint8)
    return [span_ids_launch(*integers[:3], kinds, integers[3], *outputs)]


KERNELS = {  # who launches it, and under which name
    "forward": (_whole, "span_kl_kernel"),
    "forward, stats": (_whole, "span_kl_kernel"),
    "forward, lse given": (_whole, "span_kl_kernel"),
    "log_sum_exps": (_whole, "span_kl_kernel"),
    "forward_backward": (_whole, "span_kl_kernel"),
    "forward_backward, stats": (_whole, "span_kl_kernel"),
    "backward": (_backward, "span_kl_backward_kernel"),
    "slice totals": (_sliced, "slice_totals_kernel"),
    "slice totals, stats": (_sliced, "slice_totals_kernel"),
    "slice values": (_sliced, "slice_values_kernel"),
    "slice values, stats": (_sliced, "slice_values_kernel"),
    "slice values, gradient": (_sliced, "slice_values_kernel"),
    "combine slices, stats": (_sliced, "combine_slices_kernel"),
    "collect rows, stats": (_whole, "collect_rows_kernel"),
    "scale": (_scale, "scale_rows_kernel"),
    "top-k forward, stats": (_topk, "topk_span_kl_kernel"),
    "top-k forward_backward": (_topk, "topk_span_kl_kernel"),
    "top-k forward_backward, stats": (_topk, "topk_span_kl_kernel"),
    "top-k backward": (_topk, "topk_span_kl_kernel"),
    "span ids": (_span_ids, "span_ids_kernel"),
}
_ONE_DIVERGENCE = (
    "log_sum_exps",
    "slice totals",
    "slice totals, stats",
    "combine slices, stats",
    "collect rows, stats",
    "scale",
    "span ids",
    "top-k forward, stats",
    "top-k forward_backward",
    "top-k forward_backward, stats",
    "top-k backward",
)
_NO_TILE = ("combine slices, stats", "collect rows, stats", "span ids")
_NEVER_CAPPED = (*_NO_TILE, "scale")
_ONE_DTYPE = ("scale", "top-k forward, stats", "top-k forward_backward", "top-k forward_backward, stats", "top-k backward")
_STORES = ("backward", "gradient", "scale")  # in the name of kernels that write rows


def launch(variant: Variant) -> Launch:
    build, kernel = KERNELS[variant.kernel]
    found = next(x for x in build(variant) if x.kernel.__name__ == kernel)
    return found if found.tile is None else found._replace(tile=_tiles(variant)[variant.tile])


def _tiles(variant: Variant) -> list[tiles.RowTile]:
    """What the kernel may be launched with."""
    if variant.kernel in _NO_TILE:
        return []
    if variant.kernel in ("backward", "scale"):
        return list(tiles.one_pass_tiles(*variant.dtypes).values())
    if variant.kernel.startswith("top-k"):
        return list(tiles.two_pass_tiles(*variant.dtypes, lean=False).values())
    lean = "stats" not in variant.kernel and variant.divergence != "jsd" and not variant.capped
    two_pass = list(tiles.two_pass_tiles(*variant.dtypes, lean).values())
    return two_pass[1:2] if variant.kernel.startswith("slice") else two_pass


def _kinds_of_kernel() -> Iterator[tuple[str, str, bool]]:
    """Kernel, divergence, capped or not: every combination that differs."""
    for kernel in KERNELS:
        for divergence in DIVERGENCES[: 1 if kernel in _ONE_DIVERGENCE else None]:
            if kernel == "slice values, gradient" and divergence != "forward_kl":
                continue  # their gradient is the backward kernel's
            yield kernel, divergence, False
            if kernel not in _NEVER_CAPPED:
                yield kernel, divergence, True


def _in_turn(i: int, variant: Variant) -> Variant:
    dtypes = DTYPES[i % len(DTYPES)]
    if variant.kernel in _ONE_DTYPE:
        dtypes = (dtypes[0], dtypes[0])
    variant = variant._replace(dtypes=dtypes)
    return variant._replace(tile=i // 2 % max(len(_tiles(variant)), 1))


def variants(architectures: tuple[int, ...], quick: bool) -> Iterator[Variant]:
    """The sample that the docstring describes."""
    if quick:
        for architecture in architectures:
            yield Variant("forward_backward", architecture, tile=1)
        kinds = [kind for i, kind in enumerate(_kinds_of_kernel()) if not kind[2] or i % 3 == 0]
        for i, (kernel, divergence, capped) in enumerate(kinds):
            yield _in_turn(i, Variant(kernel, architectures[i % len(architectures)], divergence, capped))
        return
    for i, architecture in enumerate(architectures):
        for j, (kernel, divergence, capped) in enumerate(_kinds_of_kernel()):
            one = _in_turn(i + j, Variant(kernel, architecture, divergence, capped))
            if capped or kernel not in ("forward_backward", "backward"):
                yield one
                continue
            for dtypes in DTYPES if divergence == "forward_kl" else [one.dtypes]:
                every = one._replace(dtypes=dtypes)
                yield from (every._replace(tile=tile) for tile in range(len(_tiles(every))))


def inspect(variant: Variant) -> dict[str, object]:
    """A row of the CSV."""
    launched = launch(variant)
    return {
        "kernel": variant.kernel,
        "divergence": "any" if variant.kernel in _ONE_DIVERGENCE else variant.divergence,
        "capped": "both" if variant.capped else "",
        "student/teacher": "/".join(TYPES[x] for x in variant.dtypes),
        "architecture": f"sm_{variant.architecture}",
        "tile": launched.tile.name if launched.tile else "",
        "warps": launched.options()["num_warps"],
        "columns_per_thread": launched.tile.group if launched.tile else "",
        **figures(launched, variant.architecture),
    }


def faults(row: dict[str, object]) -> list[str]:
    """What is wrong with a compiled kernel, in words."""
    wanted = {"spilled_bytes": 0, "local_accesses": 0, "narrowest_load_bits": 128, "narrowest_store_bits": 128}
    if row["kernel"].startswith("top-k forward"):
        wanted["narrowest_load_bits"] = 32  # the next listed column, in the loop over those of a block
    found = [f"{key} is {row[key]}, not {value}" for key, value in wanted.items() if row[key] != value]
    if row["tile"]:
        reads, writes = row["loads_in_loops"], row["stores_in_loops"]
        if not reads or (not writes and any(word in row["kernel"] for word in _STORES)):
            found.append(f"{reads} loads and {writes} stores in loops: none was recognised")
    limit = SHARED_KB[int(row["architecture"].removeprefix("sm_"))] << 10
    if row["shared_bytes"] > limit:
        found.append(f"{row['shared_bytes']} bytes of shared memory, a block may have {limit}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities, such as 80 90")
    parser.add_argument("--quick", action="store_true", help="a sample with every architecture, kernel and divergence")
    parser.add_argument("--out", type=Path, default=RESULTS / "triton_offline.csv")
    options = parser.parse_args()
    rows, bad = [], 0
    sample = list(dict.fromkeys(variants(tuple(options.arch), options.quick)))
    with ProcessPoolExecutor() as workers:
        for variant, row in zip(sample, workers.map(inspect, sample)):
            rows.append(row)
            wrong = faults(row)
            bad += bool(wrong)
            print(f"{variant.name} {row['tile']}: {row['registers']} registers, {'; '.join(wrong) or 'sound'}", flush=True)
    write_csv(options.out, rows)
    print(f"{len(rows)} kernels, {bad} with faults; {options.out}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
