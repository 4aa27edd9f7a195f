"""Builds the executor and runs programs on it."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.ptx import instructions
from tests.ptx.encode import Program

EXECUTOR = Path(__file__).parent / "executor"
FLAGS = ["-std=c++20", "-O2", "-march=native", "-fwrapv", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared"]
MOST_STEPS = 20_000_000  # instructions per warp


class Fault(AssertionError):
    """The kernel did something that it must not do on a GPU."""


class _Launch(ctypes.Structure):
    _fields_ = [
        ("instructions", ctypes.c_void_p),
        ("instruction_count", ctypes.c_int64),
        ("register_words", ctypes.c_int64),
        ("initial", ctypes.c_void_p),
        ("initial_count", ctypes.c_int64),
        ("grid", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32),
        ("cluster", ctypes.c_uint32),
        ("shared_bytes", ctypes.c_uint32),
        ("local_bytes", ctypes.c_uint32),
        ("parameters", ctypes.c_char_p),
        ("parameter_bytes", ctypes.c_uint64),
        ("allocations", ctypes.c_void_p),
        ("allocation_count", ctypes.c_int64),
        ("noise", ctypes.c_uint64),
        ("order", ctypes.c_uint64),
        ("most_steps", ctypes.c_uint64),
    ]


class _Report(ctypes.Structure):
    _fields_ = [
        ("instruction", ctypes.c_int64),
        ("block", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32),
        ("steps", ctypes.c_uint64),
        ("message", ctypes.c_char * 512),
    ]


@dataclass(frozen=True)
class Shape:
    """The grid of a launch: blocks per dimension, threads per block, blocks per cluster, bytes of dynamic shared memory."""

    grid: tuple[int, int, int]
    threads: int
    cluster: int = 1
    dynamic_shared: int = 0


@dataclass
class Conditions:
    """How launches run.

    Attributes:
        noise: Seed of the errors of approximations; 0 gives correctly rounded results.
        order: 0 runs the clusters in order, 1 in reverse, other numbers in a random order.
        steps: The instructions of all warps so far.
    """

    noise: int = 0
    order: int = 0
    steps: int = field(default=0, compare=False)


def run(
    program: Program,
    shape: Shape,
    parameters: bytes,
    allocations: Iterable[tuple[int, int]],
    conditions: Conditions | None = None,
) -> None:
    """Runs a kernel.

    Args:
        program: The encoded kernel.
        shape: The grid.
        parameters: The bytes of the kernel parameters.
        allocations: First and last address + 1 of each allocation that the kernel may access.
        conditions: Noise and order; counts the executed instructions.

    Raises:
        Fault: The kernel accesses memory that it must not access, races, or ends in a trap.
    """
    conditions = conditions or Conditions()
    if len(parameters) != program.parameter_bytes:
        raise ValueError(f"parameters: expected {program.parameter_bytes} bytes for {program.name}, got {len(parameters)}")
    if program.max_threads and shape.threads > program.max_threads:
        raise Fault(f"{program.name} is compiled for at most {program.max_threads} threads, the launch has {shape.threads}")
    if shape.grid[0] % shape.cluster:
        raise Fault(f"{program.name}: {shape.grid[0]} blocks are no whole clusters of {shape.cluster}")
    borders = [*allocations, *((x.ctypes.data, x.ctypes.data + len(x) - 16) for x in program.globals.values())]
    merged = np.array(_merged(borders), np.uint64).reshape(-1, 2)
    launch = _Launch(
        program.instructions.ctypes.data,
        len(program.instructions),
        program.register_words,
        program.initial.ctypes.data,
        len(program.initial),
        (ctypes.c_uint32 * 3)(*shape.grid),
        shape.threads,
        shape.cluster,
        program.static_shared + shape.dynamic_shared,
        program.local,
        parameters,
        len(parameters),
        merged.ctypes.data,
        len(merged),
        conditions.noise,
        conditions.order,
        MOST_STEPS,
    )
    report = _Report()
    failed = _library().ptx_run(ctypes.byref(launch), ctypes.byref(report))
    conditions.steps += report.steps
    if not failed:
        return
    where = program.texts[report.instruction] if 0 <= report.instruction < len(program.texts) else "the end of the kernel"
    block = ", ".join(str(x) for x in report.block)
    raise Fault(f"{report.message.decode()}\n  {program.name}, block ({block}), thread {report.thread}\n  {where}")


def _merged(borders: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns the allocations without duplicates, and without those inside of others."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(set(borders), key=lambda x: (x[0], -x[1])):
        if end > begin and not (merged and end <= merged[-1][1]):
            merged.append((begin, end))
    return merged


@functools.cache
def unbuildable() -> str | None:
    """Returns why this machine cannot build the executor, or None."""
    compiler = os.environ.get("CXX", "g++")
    return None if shutil.which(compiler) else f"the executor of PTX needs a C++20 compiler and there is no {compiler}"


@functools.cache
def cache_folder() -> Path:
    """Returns a folder for builds that the processes of a test run share."""
    folder = Path(__file__).parents[2] / "build" / "ptx"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _library() -> ctypes.CDLL:
    generated = {"operations.h": instructions.enumerations(), "operations.inc": instructions.cases()}
    sources = sorted(EXECUTOR.iterdir())
    compiler = os.environ.get("CXX", "g++")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    processor = subprocess.run([compiler, "-march=native", "-Q", "--help=target"], capture_output=True, text=True).stdout
    digest = hashlib.sha256(
        repr((version, processor, FLAGS, generated, [x.read_bytes() for x in sources])).encode()
    ).hexdigest()[:12]
    folder = cache_folder()
    built = folder / f"executor-{digest}.so"
    with open(folder / "lock", "w") as lock:  # the processes of a test run share the build
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            for older in folder.glob("executor-*.so"):
                older.unlink()
            with tempfile.TemporaryDirectory() as made:
                for name, text in generated.items():
                    (Path(made) / name).write_text(text)
                unfinished = folder / "unfinished.so"
                command = [compiler, *FLAGS, f"-I{made}", str(EXECUTOR / "machine.cpp"), "-o", str(unfinished)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
                unfinished.rename(built)
    library = ctypes.CDLL(str(built))
    library.ptx_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return library
