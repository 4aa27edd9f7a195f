"""Runs the launches of the Triton backend as compiled code on the executor."""

from __future__ import annotations

import atexit
import functools
import struct
from collections.abc import Iterator
from typing import Any

import torch

from sadkernels.triton.launch import Launch
from tests.ptx.encode import Program, encode
from tests.ptx.machine import Conditions, Shape, run
from tests.ptx.parse import parse
from tests.ptx.triton_compiler import Compiled, Compiler, Request, TensorArgument


class TritonExecutor:
    """Runs launches compiled for an architecture, such as 80."""

    def __init__(self, architecture: int, conditions: Conditions | None = None) -> None:
        self.architecture = architecture
        self.conditions = conditions or Conditions()
        self.launched: list[str] = []  # names of kernels

    def run(self, launch: Launch) -> None:
        """Runs a launch on CPU tensors."""
        values = launch.arguments()
        made = compiled(self._request(launch, values))
        self.launched.append(made.name)
        program = encoded(made.ptx, made.name)
        shape = Shape((launch.programs, 1, 1), 32 * made.warps, dynamic_shared=made.shared)
        arguments = [values[name] for name in made.parameters]
        arguments += [0] * (len(program.parameters) - len(arguments))  # scratch memory, which these kernels do not use
        run(program, shape, packed(program, arguments), allocations(values.values()), self.conditions)

    def _request(self, launch: Launch, values: dict[str, Any]) -> Request:
        # The JIT looks at addresses only to see whether they are multiples of 16.
        arguments = {
            name: TensorArgument(value.dtype, value.data_ptr() % 16) if isinstance(value, torch.Tensor) else value
            for name, value in values.items()
        }
        function = launch.kernel.fn
        return Request(function.__module__, function.__name__, self.architecture, arguments, launch.options())


_compilers: list[Compiler] = []
_answers: dict[str, Compiled] = {}


def compiled(request: Request) -> Compiled:
    """Returns the compiled kernel of a launch."""
    key = repr(request)
    if key not in _answers:
        if not _compilers:
            _compilers.append(Compiler())
            atexit.register(_compilers[0].close)
        _answers[key] = _compilers[0].compile(request)
    return _answers[key]


@functools.lru_cache(maxsize=64)
def encoded(ptx: str, kernel: str) -> Program:
    """Returns a kernel of PTX text as a program."""
    return encode(parse(ptx), kernel)


def packed(program: Program, arguments: list[Any]) -> bytes:
    """Returns the bytes of the kernel parameters."""
    data = bytearray(program.parameter_bytes)
    for parameter, offset, value in zip(program.parameters, program.offsets, arguments, strict=True):
        if isinstance(value, torch.Tensor):
            content = struct.pack("<Q", value.data_ptr())
        elif isinstance(value, float):
            content = struct.pack("<f" if parameter.bytes == 4 else "<d", value)
        else:
            content = int(value).to_bytes(parameter.bytes, "little", signed=value < 0)
        data[offset : offset + parameter.bytes] = content
    return bytes(data)


def allocations(values: Any) -> Iterator[tuple[int, int]]:
    """Yields the first and the last address + 1 of the memory of each tensor."""
    for value in values:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()
