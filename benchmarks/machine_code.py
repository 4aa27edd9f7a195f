"""The machine code of a Triton launch, compiled without a GPU, and what can be counted in it."""

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
TYPES |= {torch.bool: "i1", torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64"}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compile_kernel(launch: Launch, architecture: int) -> tuple[bytes, int]:
    """The kernel's cubin and the bytes of shared memory that a launch asks for.

    The kernels have nothing specialised besides their constants, so this is what the JIT would compile on a GPU.
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


def figures(launch: Launch, architecture: int) -> dict[str, object]:
    """Registers, spills, shared memory, and the accesses in loops of a kernel that walks rows."""
    cubin, shared = compile_kernel(launch, architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    found = {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    bodies = loops(sass) if launch.tile else []  # the others touch a few numbers a row
    in_loops = [x for body in bodies for x in body]
    loads = [_width(x) for x in in_loops if x.startswith("LDG")]
    stores = [_width(x) for x in in_loops if x.startswith("STG")]
    return {
        "registers": found["REG"],
        "spilled_bytes": found["STACK"],
        "local_accesses": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "shared_bytes": shared,
        "loads_in_loops": len(loads),
        "narrowest_load_bits": min(loads, default=128),
        "stores_in_loops": len(stores),
        "narrowest_store_bits": min(stores, default=128),
        "instructions_of_reading_loops": " ".join(str(len(x)) for x in bodies if any(y.startswith("LDG") for y in x)),
    }
