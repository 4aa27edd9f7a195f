"""Compiles a Triton launch without a GPU, and counts registers, spills and memory accesses in its machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sadkernels.triton.launch import Launch

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TYPES |= {torch.float64: "fp64", torch.bool: "i1", torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64"}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compile_kernel(launch: Launch, architecture: int) -> tuple[bytes, int]:
    """Returns the kernel's cubin and its shared memory in bytes.

    Only the constants of the kernels are specialized, so the JIT compiles the same code on a GPU.
    """
    signature, constants = {}, {}
    values = launch.arguments()
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


_BRANCH = re.compile(r"\b(?:BRA|BSSY|CALL)\b.*`\((\.L_x_\d+)\)")
_NEVER_FALLS_THROUGH = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:BRA\s+`|EXIT\b|RET\b)")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")


def _reached_without(avoided: int, lines: list[str], labels: dict[str, int]) -> set[int]:
    """Returns the lines that the kernel reaches from its first instruction without the line `avoided`."""
    reached: set[int] = set()
    pending = [next(i for i, line in enumerate(lines) if _INSTRUCTION.search(line))]
    while pending:
        i = pending.pop()
        if i == avoided or i in reached or i >= len(lines):
            continue
        reached.add(i)
        if (found := _BRANCH.search(lines[i])) and found[1] in labels:
            pending.append(labels[found[1]])
        if not _NEVER_FALLS_THROUGH.search(lines[i]):
            pending.append(i + 1)
    return reached


def innermost_loops(sass: str) -> list[list[str]]:
    """Returns the instructions of every innermost loop, from its label to the branch back.

    A rare block is often at the end of the code and branches back too. It is no loop: the kernel reaches that branch without
    the label.
    """
    lines = sass.splitlines()
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"(\.L_x_\d+):", line))}
    loops = []
    for end, line in enumerate(lines):
        begin = labels.get(m[1], end) if (m := re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)) else end
        if begin < end and end not in _reached_without(begin, lines, labels):
            loops.append((begin, end))
    innermost = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [[m[1] for line in lines[a : b + 1] if (m := _INSTRUCTION.search(line))] for a, b in innermost]


def _access_bits(instruction: str) -> int:
    """Returns the bits per thread of a load or store such as LDG.E.EF.128."""
    parts = instruction.split(".")
    return next((int(part.lstrip("SU")) for part in parts if part.lstrip("SU") in ("8", "16", "64", "128")), 32)


def measure(launch: Launch, architecture: int) -> dict[str, object]:
    """Returns registers, spills and shared memory of a kernel, and the memory accesses in the loops that walk rows."""
    cubin, shared_bytes = compile_kernel(launch, architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    resources = {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    loops = innermost_loops(sass) if launch.tile else []  # kernels without a tile access a few numbers per row
    instructions = [x for loop in loops for x in loop]
    load_bits = [_access_bits(x) for x in instructions if x.startswith("LDG")]
    store_bits = [_access_bits(x) for x in instructions if x.startswith("STG")]
    return {
        "registers": resources["REG"],
        "spilled_bytes": resources["STACK"],
        "local_accesses": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "shared_bytes": shared_bytes,
        "loads_in_loops": len(load_bits),
        "narrowest_load_bits": min(load_bits, default=128),
        "stores_in_loops": len(store_bits),
        "narrowest_store_bits": min(store_bits, default=128),
        "instructions_of_reading_loops": " ".join(str(len(x)) for x in loops if any(y.startswith("LDG") for y in x)),
    }
