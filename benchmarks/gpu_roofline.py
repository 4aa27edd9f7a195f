"""Derives how close the GPU kernels can come to the copy bandwidth of eight GPUs, from machine code, without a GPU.

    python benchmarks/gpu_roofline.py [--arch 80 90] [--out FILE] [--plot FILE]

Compiles the kernels of `roofline.HOT_KERNELS` and counts the instructions that their loops execute per column, by pipe. For
each GPU it computes the share of the issue slots and of each pipe that the kernel would need at full copy bandwidth. If a
share is above 1, the kernel cannot reach that bandwidth: `copy_fraction_at_most` is 1 / the largest share. This is an upper
limit. It leaves out latencies, barriers, reductions, and the traffic of later passes through L2.

The tests compare their compilations with the committed CSV file. Run this script after a change of a kernel or a compiler.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import cuda_build
import offline_checks
from harness import RESULTS, write_csv
from roofline import CARDS, HOT_CUDA, HOT_TRITON, PIPES, roofline_rows

SOURCES = ("kernels_bfloat16.cu", "kernels_float32.cu")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=offline_checks.ARCHITECTURES, help="compute capabilities")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_roofline_offline.csv")
    parser.add_argument("--plot", type=Path, default=RESULTS / "gpu_roofline_offline.svg", help="needs matplotlib")
    options = parser.parse_args()
    nvcc = cuda_build.find_nvcc()
    compiled = [*compile_triton(options.arch), *compile_cuda(nvcc, options.arch)]
    rows = roofline_rows(compiled)
    kernels, cards = len(HOT_TRITON) + len(HOT_CUDA), sum(int(card.architecture[3:]) in options.arch for card in CARDS)
    if len(rows) != kernels * cards:
        raise SystemExit(
            f"{len(rows)} rows, expected {kernels} kernels x {cards} GPUs: a kernel was renamed; update HOT_KERNELS in"
            " benchmarks/roofline.py"
        )
    write_csv(options.out, rows)
    draw(rows, options.plot)
    print(f"{len(rows)} rows; {options.out}, {options.plot}")
    return 0


def compile_triton(architectures: list[int]) -> list[dict[str, object]]:
    """Compiles the hot Triton kernels and returns their rows of `offline_checks.py`."""
    variants = [offline_checks.hot_variant(hot, architecture) for hot in HOT_TRITON for architecture in architectures]
    with ProcessPoolExecutor(_jobs()) as workers:
        return list(workers.map(offline_checks.inspect, variants))


def compile_cuda(nvcc: str, architectures: list[int]) -> list[dict[str, object]]:
    """Compiles the sources of the hot CUDA kernels and returns their rows of `cuda_build.py`."""
    jobs = [(cuda_build.ROOT / "csrc" / "cuda" / name, architecture) for architecture in architectures for name in SOURCES]
    with ThreadPoolExecutor(_jobs()) as pool:
        return [row for rows in pool.map(lambda job: cuda_build.compile_one(nvcc, *job), jobs) for row in rows]


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """Draws the share of the busiest pipe at full copy bandwidth: a panel per backend, a bar per bfloat16 kernel and GPU."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "sad", "svg.fonttype": "none"})  # the same, small file on every run
    figure, axes = plt.subplots(2, 1, figsize=(9, 6), sharex=True)
    cards = list(dict.fromkeys(row["card"] for row in rows))
    for axis, backend in zip(axes, ("triton", "cuda")):
        chosen = [row for row in rows if (row["backend"], row["dtype"]) == (backend, "bf16")]
        labels = list(dict.fromkeys(row["label"] for row in chosen))
        width = 0.8 / len(labels)
        for i, label in enumerate(labels):
            shares = [max(float(row[f"{pipe}_share"]) for pipe in PIPES) for row in chosen if row["label"] == label]
            axis.bar([j + (i + 0.5) * width - 0.4 for j in range(len(cards))], shares, width, label=label)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_title(f"{backend}, bfloat16", fontsize=9)
        axis.set_xticks(range(len(cards)), cards)
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.supylabel("busiest pipe at full copy bandwidth (above 1: it is the limit)", fontsize=9)
    figure.suptitle("Derived from machine code and data sheets, not measured", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _jobs() -> int:
    return int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))


if __name__ == "__main__":
    sys.exit(main())
