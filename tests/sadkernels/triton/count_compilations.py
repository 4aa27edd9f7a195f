"""Prints how often the JIT compiles each kernel over calls of many sizes. Run this as a module: it replaces the GPU driver.

The calls go through the JIT as on a GPU, except for the launch itself. `OfflineDriver` reports a GPU that is not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from unittest import mock

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from sadkernels.divergence import DivergenceConfig
from sadkernels.topk import TopkTarget, TopkValues
from sadkernels.triton import tiles
from sadkernels.triton.launch import Launch
from sadkernels.triton.span_ids import span_ids_launch
from sadkernels.triton.span_kl import Inputs, Outputs, backward_launches, forward_launches, scale_launches
from sadkernels.triton.topk_span_kl import topk_launches


class OfflineDriver:
    """Reports an A100, so that the JIT compiles for it."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 80, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def tensors() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yields student, teacher and kinds of many sizes: 1, odd, divisible by 16; contiguous or not; aligned or not."""
    for n, v in ((1, 1), (16, 16), (7, 1000), (2048, 1024), (5, 50257), (32, 50304), (1, 151936)):
        for offset, gap in ((0, 0), (1, 0), (8, 16)):
            memory = torch.empty(offset + n * (v + gap), dtype=torch.bfloat16, device="meta")
            rows = memory.as_strided((n, v), (v + gap, 1), offset)
            yield rows, rows, torch.empty(n, dtype=torch.uint8, device="meta")


def span_kl_launches(kernel: str) -> Iterator[Launch]:
    def split(n_rows: int, columns: int, grid: tiles.Grid) -> tiles.Slices:
        return tiles.Slices(2 + n_rows % 3 if kernel == "slices" else 1, columns)

    for student, teacher, kinds in tensors():
        n, v = student.shape
        row, state = torch.empty(n, device="meta"), torch.empty(3, n, device="meta")
        inputs = Inputs(student, teacher, kinds, DivergenceConfig(v, 1.0 + v, beta=1 / (1 + v)), student, row)
        with mock.patch.object(tiles, "slice_rows", split):
            if kernel == "backward":
                launches = backward_launches(inputs, state)
            elif kernel == "scale":
                launches = scale_launches(student, kinds, torch.empty((), device="meta"))
            else:
                launches = forward_launches(inputs, Outputs(value=row))
        for launch in launches:
            if kernel.startswith("forward") and "TEACHER_ALIGNED" in launch.values:
                launch.values["TEACHER_ALIGNED"] = "out of phase" not in kernel
            yield launch


def span_ids_launches() -> Iterator[Launch]:
    """Yields launches for batches, tokens and spans of many sizes: 0, 1, odd, divisible by 16."""

    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    for b, t, m in ((1, 1, 1), (64, 512, 2560), (3, 1000, 0), (7, 77, 33), (16, 16, 16)):
        inputs = (empty(b, t, 2), empty(m), empty(m), empty(m, dtype=torch.uint8), empty(b + 1))
        masks = empty(b, t, dtype=torch.bool), empty(b, t, dtype=torch.bool)
        yield span_ids_launch(*inputs, empty(b, t, dtype=torch.uint8), None, None)
        yield span_ids_launch(*inputs, None, *masks)


def all_topk_launches() -> Iterator[Launch]:
    for student, _, kinds in tensors():
        n, v = student.shape
        for k in (1, 5, 16, 33, 64):
            columns, log_p, row = (torch.empty(shape, device="meta") for shape in ((n, k), (n, k), n))
            target = TopkTarget(columns.int(), log_p, row, None, 1.0 if v % 2 else 0.5)
            values = TopkValues(row, None)
            yield from topk_launches(student, target, kinds, DivergenceConfig(v, 1.0 + v), values, grad=student, weights=row)


def main() -> None:
    driver.set_active(OfflineDriver())
    compiled: list[str] = []
    knobs.runtime.jit_cache_hook = lambda **call: compiled.append(call["repr"])  # returns None, so the JIT compiles
    counts = {}
    for kernel in ("forward_backward", "backward", "scale", "forward_backward out of phase", "slices", "span_ids", "top-k"):
        before = len(compiled)
        other = {"span_ids": span_ids_launches, "top-k": all_topk_launches}.get(kernel)
        for launch in other() if other else span_kl_launches(kernel):
            launch.kernel.run(grid=(launch.programs,), warmup=True, **launch.arguments(), **launch.options())
        counts[kernel] = len(compiled) - before
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
