"""Prints how often the JIT compiles the kernels over calls of many sizes. Run as a module: it replaces the GPU driver.

The launches go through the JIT as they would on a GPU, up to the launch itself; only the driver that says which GPU is
there is a stand-in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from sadkernels.triton import span_kl
from sadkernels.triton.span_kl import Launch


class OfflineDriver:
    """An A100 that can be compiled for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 80, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def tensors() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Student, teacher and kinds of many sizes: 1, odd, divisible by 16; contiguous or not; aligned or not."""
    for n, v in ((1, 1), (16, 16), (7, 1000), (2048, 1024), (5, 50257), (32, 50304), (1, 151936)):
        for offset, gap in ((0, 0), (1, 0), (8, 16)):
            memory = torch.empty(offset + n * (v + gap), dtype=torch.bfloat16, device="meta")
            rows = memory.as_strided((n, v), (v + gap, 1), offset)
            yield rows, rows, torch.empty(n, dtype=torch.uint8, device="meta")


def launches(kernel: str) -> Iterator[Launch]:
    for student, teacher, kinds in tensors():
        n, v = student.shape
        row, rows = torch.empty(n, device="meta"), torch.empty(2, n, device="meta")
        if kernel.startswith("forward_backward"):
            outputs = {"weights": row, "kl": row, "lse": None, "extras": None}
            launch = span_kl.two_passes(student, teacher, kinds, student, v, 1.0 + v, **outputs)
            aligned = "out of phase" not in kernel
            yield launch._replace(arguments={**launch.arguments, "TEACHER_ALIGNED": aligned})
        elif kernel == "backward":
            yield span_kl.one_pass(student, teacher, kinds, student, v, 1.0 + v, lse=rows, weights=row)
        else:
            yield span_kl.scaling(student, kinds, torch.empty((), device="meta"))


def main() -> None:
    driver.set_active(OfflineDriver())
    compiled: list[str] = []
    knobs.runtime.jit_cache_hook = lambda **about: compiled.append(about["repr"])  # None: go on and compile
    counts = {}
    for kernel in ("forward_backward", "backward", "scale", "forward_backward out of phase"):
        before = len(compiled)
        for launch in launches(kernel):
            launch.kernel.run(
                grid=(launch.n_rows,), warmup=True, **launch.arguments, **launch.constants(), **launch.options()
            )
        counts[kernel] = len(compiled) - before
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
