"""Runs the launches of the CUDA backend as compiled code on the executor.

The host code is that of the emulation (csrc/cuda/emulation.h). It plans and makes the launches, and hands them on to this
module. Kernels that are not compiled here run in the emulation.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import re
import subprocess
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import setup
from tests.ptx.encode import Program, encode
from tests.ptx.machine import Conditions, Fault, Shape, cache_folder, run
from tests.ptx.parse import Module, PtxError, parse

CSRC = Path(__file__).resolve().parents[2] / "csrc"
# nvcc names anonymous namespaces and static functions differently than the C++ compiler.
_OWN_NAMES = re.compile(r"\d+_GLOBAL__N_\w*?(?=15span_ids_kernel)|(?<=4cuda)L(?=\d)")


class ForeignLaunch(ctypes.Structure):
    """`ForeignLaunch` of csrc/cuda/emulation.h."""

    _fields_ = [
        ("kernel", ctypes.c_void_p),
        ("blocks", ctypes.c_uint32),
        ("blocks_y", ctypes.c_uint32),
        ("threads", ctypes.c_uint32),
        ("cluster", ctypes.c_uint32),
        ("shared_bytes", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("values", ctypes.POINTER(ctypes.c_void_p)),
        ("sizes", ctypes.POINTER(ctypes.c_size_t)),
    ]


_LAUNCHER = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(ForeignLaunch), ctypes.POINTER(ctypes.c_void_p))


class CudaExecutor:
    """Runs the launches of an emulated extension while it is active.

    Args:
        extension: The emulated extension.
        ptx: The compiled kernels.
        conditions: Noise, and the order of blocks.
    """

    def __init__(self, extension: ModuleType, ptx: str, conditions: Conditions) -> None:
        self.ptx, self.conditions = ptx, conditions
        self.launched: list[str] = []  # names of kernels that ran as compiled code
        self.emulated: list[str] = []
        self.clusters: list[int] = []  # blocks per cluster of these launches
        self._extension = extension
        self._symbols = _symbols(extension.__file__)
        self._tensors: list[weakref.ref[torch.Tensor]] = []
        self._callback = _LAUNCHER(self._launch)
        self._fault = ctypes.create_string_buffer(1)

    def activate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Takes the launches until the test ends. Kernels may access the tensors whose addresses were asked for."""
        address_of = torch.Tensor.data_ptr

        def data_ptr(tensor: torch.Tensor) -> int:
            self._tensors.append(weakref.ref(tensor))
            return address_of(tensor)

        monkeypatch.setattr(torch.Tensor, "data_ptr", data_ptr)
        self._extension.set_launcher(ctypes.cast(self._callback, ctypes.c_void_p).value)

    def close(self) -> None:
        self._extension.set_launcher(0)

    def _launch(self, launch: ctypes.POINTER(ForeignLaunch), fault: ctypes.POINTER(ctypes.c_void_p)) -> bool:
        try:
            return self._run(launch.contents)
        except (Fault, PtxError, ValueError) as error:
            self._fault = ctypes.create_string_buffer(str(error).encode())
            fault[0] = ctypes.addressof(self._fault)
            return False

    def _run(self, launch: ForeignLaunch) -> bool:
        name = self._symbols[launch.kernel - _base(self._extension.__file__)]
        if name not in _module(self.ptx).functions:
            self.emulated.append(name)
            return False
        self.launched.append(name)
        self.clusters.append(launch.cluster)
        program = _encoded(self.ptx, name)
        data = bytearray(program.parameter_bytes)
        for i, (parameter, offset) in enumerate(zip(program.parameters, program.offsets, strict=True)):
            if launch.sizes[i] != parameter.bytes:
                raise ValueError(f"{name}: parameter {i} has {launch.sizes[i]} bytes on the host, {parameter.bytes} in PTX")
            data[offset : offset + parameter.bytes] = ctypes.string_at(launch.values[i], parameter.bytes)
        shape = Shape((launch.blocks, launch.blocks_y, 1), launch.threads, launch.cluster, launch.shared_bytes)
        run(program, shape, bytes(data), self._allocations(), self.conditions)
        return True

    def _allocations(self) -> Iterator[tuple[int, int]]:
        alive = [tensor for x in self._tensors if (tensor := x()) is not None]
        self._tensors = [weakref.ref(tensor) for tensor in alive]
        for tensor in alive:
            storage = tensor.untyped_storage()
            yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()


@functools.lru_cache(maxsize=8)
def _module(ptx: str) -> Module:
    module = parse(ptx)
    renamed = {_OWN_NAMES.sub("", name): function for name, function in module.functions.items()}
    return module._replace(functions=module.functions | renamed)


@functools.lru_cache(maxsize=64)
def _encoded(ptx: str, kernel: str) -> Program:
    return encode(_module(ptx), kernel)


@functools.cache
def _symbols(library: str) -> dict[int, str]:
    """Returns the names of the functions of a library by their addresses in the file."""
    listed = subprocess.run(["nm", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in listed.splitlines()]
    return {int(address, 16): _OWN_NAMES.sub("", name) for address, kind, name in lines if kind in "tTwWuVv"}


def _base(library: str) -> int:
    """Returns the address at which this process has loaded a library."""
    with open("/proc/self/maps") as maps:
        return min(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(library))


@functools.cache
def compiled(architecture: int, source: str) -> str:
    """Compiles CUDA code with nvcc to PTX, and caches the result.

    Args:
        architecture: Such as 90.
        source: Code that may include the headers of csrc and csrc/cuda.
    """
    nvcc = setup.find_nvcc()
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    flags = [*setup.NVCC_FLAGS, f"-arch=compute_{architecture}", "-ptx"]
    digest = hashlib.sha256(repr((source, version, flags)).encode())
    for path in sorted([*CSRC.glob("*.h"), *(CSRC / "cuda").iterdir()]):
        digest.update(path.read_bytes())
    which = hashlib.sha256(repr((architecture, source)).encode()).hexdigest()[:8]
    target = cache_folder() / f"{which}-{digest.hexdigest()[:12]}.ptx"
    with open(cache_folder() / f"{which}.lock", "w") as lock:  # two test runs share the folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            for older in cache_folder().glob(f"{which}-*.ptx"):
                older.unlink()
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "kernels.cu"
                file.write_text(source)
                unfinished = Path(folder) / "kernels.ptx"
                done = subprocess.run([nvcc, *flags, str(file), "-o", str(unfinished)], capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"{source}\n{done.stderr[-4000:]}")
                target.write_bytes(unfinished.read_bytes())
    return target.read_text()
