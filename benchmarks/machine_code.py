"""Compiles a Triton launch without a GPU, and reads registers, spills, accesses and instructions from its machine code."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch
import triton
from hot_loops import innermost_loops, per_column, run_tool
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sadkernels.triton.launch import Launch

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
TYPES |= {torch.float64: "fp64", torch.bool: "i1", torch.uint8: "u8", torch.int32: "i32", torch.int64: "i64"}


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


def measure(launch: Launch, architecture: int) -> dict[str, object]:
    """Returns registers, spills and shared memory of a kernel, and the work of the loops that walk rows.

    The work is the memory accesses of all innermost loops and the instructions per column, see `hot_loops.per_column`.
    """
    cubin, shared_bytes = compile_kernel(launch, architecture)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        usage = run_tool("cuobjdump", "-res-usage", file)
        sass = run_tool("nvdisasm", "-c", file)
    resources = {key: int(value) for key, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    loops = innermost_loops(sass) if launch.tile else []  # kernels without a tile access a few numbers per row
    accesses = [x for loop in loops for x in loop.body]
    load_bits = [x.access_bits for x in accesses if x.operation == "LDG"]
    store_bits = [x.access_bits for x in accesses if x.operation == "STG"]
    return {
        "registers": resources["REG"],
        "spilled_bytes": resources["STACK"],
        "local_accesses": len(re.findall(r"\b(?:LDL|STL)\b", sass)),
        "shared_bytes": shared_bytes,
        "loads_in_loops": len(load_bits),
        "narrowest_load_bits": min(load_bits, default=128),
        "stores_in_loops": len(store_bits),
        "narrowest_store_bits": min(store_bits, default=128),
        **per_column(loops, _bytes_per_column(launch) if loops else 1),
    }


def _bytes_per_column(launch: Launch) -> int:
    """Returns the bytes that a pass reads per column: one element of each side that the kernel has."""
    values = launch.arguments()
    sides = [values[name] for name in ("student", "teacher") if isinstance(values.get(name), torch.Tensor)]
    return sum(side.dtype.itemsize for side in sides or [values["grad"]])
