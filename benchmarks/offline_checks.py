"""Compiles every Triton kernel for every architecture, without a GPU, and checks the machine code.

    python benchmarks/offline_checks.py [--arch 80 90] [--quick] [--out FILE]

The script compiles the launches of `sadkernels.triton` and reads registers, spilled bytes, shared memory, and the widths of
loads and stores in loops (16 bytes by design). It exits with 1 if a kernel spills, has a narrower access in a loop that
walks a row, or needs more shared memory than a thread block may have.

The full product of kernels, divergences, soft caps, dtypes, tiles and architectures has about 5000 compilations. The script
compiles this sample on every architecture:

    forward_kl: forward_backward, backward         every pair of dtypes, every tile
    reverse_kl, jsd: forward_backward, backward    every tile, the dtypes in rotation
    all other kernels                              dtypes and tiles in rotation

`--quick` compiles every kernel once, most of them with every divergence, with the architectures in rotation too,
forward_backward of forward_kl on every architecture, and the hot kernels of `roofline.py` on one.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple
from unittest import mock

if os.environ.pop("TRITON_INTERPRET", None):
    print("TRITON_INTERPRET is ignored: these kernels are compiled", file=sys.stderr)

import torch
import triton
from harness import RESULTS, write_csv
from machine_code import TYPES, measure
from roofline import HOT_TRITON, HotKernel

from sadkernels.divergence import DIVERGENCES, DivergenceConfig, RowValues
from sadkernels.tokens import Tokens
from sadkernels.topk import TopkTarget, TopkValues
from sadkernels.triton import tiles
from sadkernels.triton.launch import Launch
from sadkernels.triton.row_weights import row_sums_launch, row_weights_launch
from sadkernels.triton.span_ids import span_ids_launch
from sadkernels.triton.span_kl import Inputs, Outputs, backward_launches, forward_launches, scale_launches
from sadkernels.triton.topk_span_kl import topk_launches

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
SHARED_KB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # limit per thread block
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = ((BF16, BF16), (FP32, FP32), (BF16, FP32), (FP16, FP16), (FP32, BF16))
V = 50257


class Variant(NamedTuple):
    """A kernel and the options that it is compiled for."""

    kernel: str
    architecture: int
    divergence: str = "forward_kl"
    capped: bool = False
    dtypes: tuple[torch.dtype, torch.dtype] = (BF16, BF16)
    tile: int = 0  # index into the kernel's tiles

    @property
    def name(self) -> str:
        student, teacher = (TYPES[dtype] for dtype in self.dtypes)
        return f"{self.kernel}, {self.divergence}{', capped' * self.capped}, {student}/{teacher}, sm_{self.architecture}"


def _empty(*shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _inputs(variant: Variant, n: int, gradient: bool, lse_given: bool = False) -> Inputs:
    student, teacher = (_empty(n, V, dtype=dtype) for dtype in variant.dtypes)
    cap = 30.0 if variant.capped else None
    config = DivergenceConfig(V, divergence=variant.divergence, student_softcap=cap, teacher_softcap=cap)
    return Inputs(
        student,
        teacher,
        _empty(n, dtype=torch.uint8),
        config,
        _empty(n, V, dtype=student.dtype) if gradient else None,
        _empty(n) if gradient else None,
        _empty(4, n) if lse_given else None,
    )


def _outputs(n: int, stats: bool, state: bool) -> Outputs:
    statistics = (_empty(2, n), _empty(2, n, dtype=torch.int32)) if stats else (None, None)
    return Outputs(_empty(n), _empty(5, n) if state else None, *statistics)


_WHOLE, _SLICED = 4, 1  # rows; without a GPU the launcher splits one row of V columns into slices


def _whole(variant: Variant) -> list[Launch]:
    gradient = "backward" in variant.kernel
    inputs = _inputs(variant, _WHOLE, gradient, "given" in variant.kernel)
    if variant.kernel == "log_sum_exps":
        return forward_launches(inputs, Outputs(state=_empty(4, _WHOLE)))
    return forward_launches(inputs, _outputs(_WHOLE, "stats" in variant.kernel, not gradient))


def _sliced(variant: Variant) -> list[Launch]:
    gradient = "gradient" in variant.kernel
    outputs = _outputs(_SLICED, "stats" in variant.kernel, not gradient)
    return forward_launches(_inputs(variant, _SLICED, gradient), outputs)


def _backward(variant: Variant) -> list[Launch]:
    return backward_launches(_inputs(variant, _WHOLE, True), _empty(5, _WHOLE))


def _scale(variant: Variant) -> list[Launch]:
    return scale_launches(_empty(_WHOLE, V, dtype=variant.dtypes[0]), _empty(_WHOLE, dtype=torch.uint8), _empty())


def _topk(variant: Variant) -> list[Launch]:
    n, k = _WHOLE, 64
    inputs = _inputs(variant, n, "backward" in variant.kernel)
    target = TopkTarget(_empty(n, k, dtype=torch.int32), _empty(n, k), _empty(n), _empty(n, dtype=torch.int32), 0.5)
    values, state_given = TopkValues(_empty(n), _empty(4, n)), None
    if "stats" in variant.kernel:
        values = values._replace(entropy=_empty(n), argmax=_empty(n, dtype=torch.int32))
    if variant.kernel == "top-k backward":
        values, state_given = TopkValues(None, None), _empty(4, n)
    backward = {"grad": inputs.grad, "weights": inputs.weights, "state_given": state_given}
    return topk_launches(inputs.student, target, inputs.kinds, inputs.config, values, **backward)


def _span_ids(variant: Variant) -> list[Launch]:
    integers = [_empty(*shape, dtype=torch.int64) for shape in ((1, 512, 2), (40,), (40,), (2,))]
    outputs = [_empty(1, 512, dtype=dtype) for dtype in (torch.uint8, torch.bool, torch.bool)]
    kinds = _empty(40, dtype=torch.uint8)
    return [span_ids_launch(*integers[:3], kinds, integers[3], *outputs)]


def _row_weights(variant: Variant) -> list[Launch]:
    ids, normalizer = _empty(2, 8, dtype=torch.int64), _empty(3, dtype=torch.float64)
    tokens = Tokens(ids, _empty(2, 8) if "token" in variant.kernel else None, normalizer=normalizer)
    return [row_weights_launch(tokens, (1.0, 0.5, 0.1), "mean", shift=True, read_all=False)[1]]


def _row_sums(variant: Variant) -> list[Launch]:
    values = RowValues(_empty(16), None, _empty(2, 16), _empty(2, 16, dtype=torch.int32))
    return [row_sums_launch(values, _empty(16), _empty(16, dtype=torch.uint8))[1]]


class Kernel(NamedTuple):
    """A kernel of the CSV: who builds its launches, its name in `sadkernels.triton`, and which options change its code."""

    build: Callable[[Variant], list[Launch]]
    name: str
    per_divergence: bool = True
    softcap: bool = True


KERNELS = {
    "forward": Kernel(_whole, "span_kl_kernel"),
    "forward, stats": Kernel(_whole, "span_kl_kernel"),
    "forward, lse given": Kernel(_whole, "span_kl_kernel"),
    "log_sum_exps": Kernel(_whole, "span_kl_kernel", per_divergence=False),
    "forward_backward": Kernel(_whole, "span_kl_kernel"),
    "forward_backward, stats": Kernel(_whole, "span_kl_kernel"),
    "forward_backward, deferred rows": Kernel(_whole, "span_kl_kernel", softcap=False),
    "forward_backward, stats, deferred rows": Kernel(_whole, "span_kl_kernel", softcap=False),
    "backward": Kernel(_backward, "span_kl_backward_kernel"),
    "slice totals": Kernel(_sliced, "slice_totals_kernel", per_divergence=False),
    "slice totals, stats": Kernel(_sliced, "slice_totals_kernel", per_divergence=False),
    "slice values": Kernel(_sliced, "slice_values_kernel"),
    "slice values, stats": Kernel(_sliced, "slice_values_kernel"),
    "slice values, gradient": Kernel(_sliced, "slice_values_kernel"),
    "combine slices, stats": Kernel(_sliced, "combine_slices_kernel", False, False),
    "collect rows, stats": Kernel(_whole, "collect_rows_kernel", False, False),
    "scale": Kernel(_scale, "scale_rows_kernel", per_divergence=False, softcap=False),
    "top-k forward, stats": Kernel(_topk, "topk_span_kl_kernel", per_divergence=False),
    "top-k forward_backward": Kernel(_topk, "topk_span_kl_kernel", per_divergence=False),
    "top-k forward_backward, stats": Kernel(_topk, "topk_span_kl_kernel", per_divergence=False),
    "top-k backward": Kernel(_topk, "topk_span_kl_kernel", per_divergence=False),
    "row weights": Kernel(_row_weights, "row_weights_kernel", False, False),
    "row weights, token weights": Kernel(_row_weights, "row_weights_kernel", False, False),
    "row sums, stats": Kernel(_row_sums, "row_sums_kernel", False, False),
    "span ids": Kernel(_span_ids, "span_ids_kernel", False, False),
}
QUICK_CAPPED = (  # one kernel of each kind of pass
    ("forward_backward", "forward_kl"),
    ("forward_backward, stats", "jsd"),
    ("backward", "reverse_kl"),
    ("slice totals, stats", "forward_kl"),
    ("top-k forward_backward", "forward_kl"),
)
_STORES = ("backward", "gradient", "scale")  # a kernel with one of these words in its name writes rows


def launch(variant: Variant) -> Launch:
    """Returns the launch that a variant stands for."""
    chosen = _launch(variant)
    return chosen if chosen.tile is None else chosen._replace(tile=_tiles(variant)[variant.tile])


def _launch(variant: Variant) -> Launch:
    """Returns the launch that a variant stands for, with the tile of a long row."""
    kernel = KERNELS[variant.kernel]
    with mock.patch.object(tiles, "compute_capability", lambda device: variant.architecture):
        launches = [x for x in kernel.build(variant) if x.kernel.__name__ == kernel.name]
    return next(x for x in launches if (x.values.get("ROWS") == "deferred") == ("deferred" in variant.kernel))


def _tiles(variant: Variant) -> list[tiles.RowTile]:
    """Returns the tiles that the launcher may choose for the kernel."""
    chosen = _launch(variant).tile
    if chosen is None or variant.kernel.startswith("slice"):
        return [] if chosen is None else [chosen]
    families = [tiles.two_pass_tiles(*variant.dtypes, fits_64_registers) for fits_64_registers in (True, False)]
    return next(list(x.values()) for x in (tiles.one_pass_tiles(*variant.dtypes), *families) if chosen in x.values())


def _cases() -> Iterator[tuple[str, str, bool]]:
    """Yields every combination of kernel, divergence and soft cap that compiles to different code."""
    for name, kernel in KERNELS.items():
        for divergence in DIVERGENCES if kernel.per_divergence else DIVERGENCES[:1]:
            if name == "slice values, gradient" and divergence != "forward_kl":
                continue  # the backward kernel computes their gradient
            yield name, divergence, False
            if kernel.softcap:
                yield name, divergence, True


def _in_quick_sample(i: int, name: str, divergence: str, capped: bool) -> bool:
    """A few soft caps, and one divergence of the kernels whose passes are also those of another kernel."""
    if capped:
        return (name, divergence) in QUICK_CAPPED
    shared = name in ("forward, stats", "forward, lse given", "slice values, stats")
    return not shared or divergence == DIVERGENCES[i % len(DIVERGENCES)]


def _rotated(i: int, variant: Variant) -> Variant:
    """Returns the variant with the i-th dtypes and tile of a rotation."""
    dtypes = DTYPES[i % len(DTYPES)]
    if variant.kernel.endswith("deferred rows"):  # only 16-bit rows are deferred
        dtypes = ((BF16, BF16), (FP16, FP16))[i % 2]
    if variant.kernel == "scale" or variant.kernel.startswith("top-k"):  # kernels of the student alone
        dtypes = (dtypes[0], dtypes[0])
    variant = variant._replace(dtypes=dtypes)
    return variant._replace(tile=i // 2 % max(len(_tiles(variant)), 1))


def variants(architectures: tuple[int, ...], quick: bool) -> Iterator[Variant]:
    """Yields the sample that the module docstring describes."""
    if quick:
        for architecture in architectures:
            yield Variant("forward_backward", architecture, tile=1)
        yield from (hot_variant(hot, architectures[len(architectures) // 2]) for hot in HOT_TRITON)
        cases = [case for i, case in enumerate(_cases()) if _in_quick_sample(i, *case)]
        for i, (kernel, divergence, capped) in enumerate(cases):
            yield _rotated(i, Variant(kernel, architectures[i % len(architectures)], divergence, capped))
        return
    for i, architecture in enumerate(architectures):
        for j, (kernel, divergence, capped) in enumerate(_cases()):
            one = _rotated(i + j, Variant(kernel, architecture, divergence, capped))
            if capped or kernel not in ("forward_backward", "backward"):
                yield one
                continue
            for dtypes in DTYPES if divergence == "forward_kl" else [one.dtypes]:
                every = one._replace(dtypes=dtypes)
                yield from (every._replace(tile=tile) for tile in range(len(_tiles(every))))


def hot_variant(hot: HotKernel, architecture: int) -> Variant:
    """Returns the variant of a kernel of the roofline."""
    dtype = {name: dtype for dtype, name in TYPES.items()}[hot.dtype]
    variant = Variant(hot.kernel, architecture, hot.divergence, dtypes=(dtype, dtype))
    return variant._replace(tile=next(i for i, tile in enumerate(_tiles(variant)) if tile.name in hot.tiles))


def inspect(variant: Variant) -> dict[str, object]:
    """Compiles a variant and returns its row of the CSV."""
    compiled = launch(variant)
    return {
        "kernel": variant.kernel,
        "divergence": variant.divergence if KERNELS[variant.kernel].per_divergence else "any",
        "capped": "both" if variant.capped else "",
        "student/teacher": "/".join(TYPES[x] for x in variant.dtypes),
        "architecture": f"sm_{variant.architecture}",
        "compiler": f"Triton {triton.__version__}",
        "tile": compiled.tile.name if compiled.tile else "",
        "warps": compiled.options()["num_warps"],
        "columns_per_thread": compiled.tile.group if compiled.tile else "",
        **measure(compiled, variant.architecture),
    }


def find_faults(row: dict[str, object]) -> list[str]:
    """Returns the faults of a compiled kernel, in words."""
    expected = {"spilled_bytes": 0, "local_accesses": 0, "narrowest_load_bits": 128, "narrowest_store_bits": 128}
    if row["kernel"].startswith("top-k forward"):
        expected["narrowest_load_bits"] = 32  # the loop over the top-k columns of a block loads one column at a time
    faults = [f"{key} is {row[key]}, expected {value}" for key, value in expected.items() if row[key] != value]
    if row["tile"]:
        reads, writes = row["loads_in_loops"], row["stores_in_loops"]
        if not reads or (not writes and any(word in row["kernel"] for word in _STORES)):
            faults.append(f"{reads} loads and {writes} stores in loops: some were not recognized")
    limit = SHARED_KB[int(row["architecture"].removeprefix("sm_"))] << 10
    if row["shared_bytes"] > limit:
        faults.append(f"{row['shared_bytes']} bytes of shared memory, limit {limit}")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities, for example 80 90")
    parser.add_argument("--quick", action="store_true", help="compile a small sample")
    parser.add_argument("--out", type=Path, default=RESULTS / "triton_offline.csv")
    options = parser.parse_args()
    rows, faulty = [], 0
    sample = list(dict.fromkeys(variants(tuple(options.arch), options.quick)))
    with ProcessPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as workers:
        for variant, row in zip(sample, workers.map(inspect, sample)):
            rows.append(row)
            faults = find_faults(row)
            faulty += bool(faults)
            print(f"{variant.name} {row['tile']}: {row['registers']} registers, {'; '.join(faults) or 'ok'}", flush=True)
    write_csv(options.out, rows)
    print(f"{len(rows)} kernels, {faulty} with faults; {options.out}")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
