"""What the compiler makes of every Triton kernel, for every architecture, without a GPU.

    python benchmarks/offline_checks.py [--arch 80 90] [--quick] [--out FILE]

Compiles what the launchers of `sadkernels.triton` would launch and reads the machine code: registers, spilled bytes, shared
memory, and how wide the loads and stores inside loops are (16 bytes is what they are written for). Exits with 1 when a
kernel spills or a loop has a narrower access. `--quick` compiles the forward and backward in one for every architecture and
the other kernels for two of them each, with dtypes and tiles in turn.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

if os.environ.pop("TRITON_INTERPRET", None):
    print("TRITON_INTERPRET is ignored: these kernels are compiled", file=sys.stderr)

import torch
import triton
from harness import RESULTS, write_csv
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sadkernels.triton import span_kl, tiles
from sadkernels.triton.span_kl import Launch
from sadkernels.triton.tiles import RowTile

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "u8"}
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = ((BF16, BF16), (FP32, FP32), (BF16, FP32), (FP16, FP16), (FP32, BF16))
V, N = 50257, 4
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Case(NamedTuple):
    """A kernel as it would be launched, and on which architecture."""

    kernel: str
    launch: Launch
    dtypes: str
    architecture: int


def _empty(*shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _two_passes(gradient: bool, stats: bool) -> Callable[..., Launch]:
    def launch(student: torch.dtype, teacher: torch.dtype) -> Launch:
        logits = _empty(N, V, dtype=student), _empty(N, V, dtype=teacher), _empty(N, dtype=torch.uint8)
        weights, lse = (_empty(N), None) if gradient else (None, _empty(2, N))
        grad, extras = _empty(N, V, dtype=student) if gradient else None, _empty(3, N) if stats else None
        return span_kl.two_passes(*logits, grad, V, 1.0, weights=weights, kl=_empty(N), lse=lse, extras=extras)

    return launch


def _backward(student: torch.dtype, teacher: torch.dtype) -> Launch:
    logits = _empty(N, V, dtype=student), _empty(N, V, dtype=teacher), _empty(N, dtype=torch.uint8)
    return span_kl.one_pass(*logits, _empty(N, V, dtype=student), V, 1.0, lse=_empty(2, N), weights=_empty(N))


def _scale(student: torch.dtype, teacher: torch.dtype) -> Launch:
    return span_kl.scaling(_empty(N, V, dtype=student), _empty(N, dtype=torch.uint8), _empty())


def _scale_tiles(student: torch.dtype, teacher: torch.dtype) -> dict[str, RowTile]:
    return tiles.one_pass_tiles(student)


KERNELS = {  # what launches it, and the tiles that it may be launched with
    "forward": (_two_passes(gradient=False, stats=False), partial(tiles.two_pass_tiles, stats=False)),
    "forward, stats": (_two_passes(gradient=False, stats=True), partial(tiles.two_pass_tiles, stats=True)),
    "forward_backward": (_two_passes(gradient=True, stats=False), partial(tiles.two_pass_tiles, stats=False)),
    "forward_backward, stats": (_two_passes(gradient=True, stats=True), partial(tiles.two_pass_tiles, stats=True)),
    "backward": (_backward, tiles.one_pass_tiles),
    "scale": (_scale, _scale_tiles),
}


def cases(architectures: tuple[int, ...], quick: bool) -> Iterator[Case]:
    for i, architecture in enumerate(architectures):
        for j, (kernel, (build, its_tiles)) in enumerate(KERNELS.items()):
            if quick and kernel != "forward_backward" and (i + j) % 3:
                continue
            pairs = [pair for pair in DTYPES if kernel != "scale" or pair[0] == pair[1]]
            for pair in [pairs[i % len(pairs)]] if quick else pairs:
                choice = list(its_tiles(*pair).values())
                for tile in [choice[(i + 1) % len(choice)]] if quick else choice:
                    yield Case(kernel, build(*pair)._replace(tile=tile), "/".join(TYPES[x] for x in pair), architecture)


def compile_kernel(launch: Launch, architecture: int) -> tuple[bytes, int]:
    """The kernel's cubin and the bytes of shared memory that a launch asks for.

    The kernels have nothing specialised besides their constants, so this is what the JIT would compile on a GPU.
    """
    values = {**launch.arguments, **launch.constants()}
    signature, constants = {}, {}
    for parameter in launch.kernel.params:
        value = values[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
        else:
            signature[parameter.name] = parameter.annotation_type
    source = ASTSource(launch.kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=launch.options())
    return compiled.asm["cubin"], compiled.metadata.shared


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def loops(sass: str) -> list[list[str]]:
    """The instructions of every innermost loop: from a label to the branch back to it."""
    lines = sass.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"(\.L_x_\d+):", line))}
    spans = []
    for end, line in enumerate(lines):
        begin = labels.get(m[1], end) if (m := re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)) else end
        if begin < end:
            spans.append((begin, end))
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    instruction = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
    return [[m[1] for line in lines[a : b + 1] if (m := instruction.search(line))] for a, b in inner]


def _width(instruction: str) -> int:
    """Bits that one thread moves with LDG.E.EF.128 and the like."""
    parts = instruction.split(".")
    return next((int(part.lstrip("SU")) for part in parts if part.lstrip("SU") in ("8", "16", "64", "128")), 32)


def inspect(case: Case) -> dict[str, object]:
    cubin, shared = compile_kernel(case.launch, case.architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    in_loops = [x for body in loops(sass) for x in body]
    loads = [_width(x) for x in in_loops if x.startswith("LDG")]
    stores = [_width(x) for x in in_loops if x.startswith("STG")]
    passes = [len(body) for body in loops(sass) if any(x.startswith("LDG") for x in body)]
    return {
        "kernel": case.kernel,
        "student/teacher": case.dtypes,
        "architecture": f"sm_{case.architecture}",
        "tile": case.launch.tile.name,
        "warps": case.launch.tile.warps,
        "columns_per_thread": case.launch.tile.group,
        "registers": found["REG"],
        "spilled_bytes": found["STACK"],
        "local_accesses": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "shared_bytes": shared,
        "loads_in_loops": len(loads),
        "narrowest_load_bits": min(loads, default=128),
        "stores_in_loops": len(stores),
        "narrowest_store_bits": min(stores, default=128),
        "instructions_of_reading_loops": " ".join(map(str, passes)),
        "triton": triton.__version__,
    }


def faults(row: dict[str, object]) -> list[str]:
    wanted = {"spilled_bytes": 0, "local_accesses": 0, "narrowest_load_bits": 128, "narrowest_store_bits": 128}
    return [f"{key} is {row[key]}, not {value}" for key, value in wanted.items() if row[key] != value]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities, such as 80 90")
    parser.add_argument(
        "--quick", action="store_true", help="a sample in which every architecture, kernel, dtype and tile occurs"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "triton_offline.csv")
    options = parser.parse_args()
    rows, bad = [], 0
    for case in cases(tuple(options.arch), options.quick):
        rows.append(row := inspect(case))
        wrong = faults(row)
        bad += bool(wrong)
        about = f"{row['kernel']}, {row['student/teacher']}, {row['architecture']}, {row['tile']}"
        print(f"{about}: {row['registers']} registers, {'; '.join(wrong) or 'sound'}", flush=True)
    write_csv(options.out, rows)
    print(f"{len(rows)} kernels, {bad} with faults; {options.out}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
