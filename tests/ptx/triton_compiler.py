"""Compiles Triton kernels to PTX in a process of its own, because the tests' process interprets them.

The process reads requests from its standard input and writes answers to its standard output, both pickled. It calls the
JIT as a launch on a GPU does, with the same specialization of arguments, and stops before ptxas.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class TensorArgument:
    """A tensor, as the JIT sees it. It is no tuple: the JIT takes tuples apart."""

    dtype: Any
    address: int

    def data_ptr(self) -> int:
        return self.address


class Request(NamedTuple):
    """A launch. `arguments` has a value or a `TensorArgument` for every parameter."""

    module: str
    kernel: str
    architecture: int
    arguments: dict[str, Any]
    options: dict[str, Any]


class Compiled(NamedTuple):
    """A compiled kernel. `parameters` are the arguments that the code has, in order."""

    ptx: str
    name: str
    parameters: list[str]
    shared: int
    warps: int


class Compiler:
    """The process that compiles. It ends with this object."""

    def __init__(self) -> None:
        env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "tests.ptx.triton_compiler"]
        self._process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def compile(self, request: Request) -> Compiled:
        pickle.dump(request, self._process.stdin)
        self._process.stdin.flush()
        answer = pickle.load(self._process.stdout)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers requests until there are no more."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime import driver

    CUDABackend.make_cubin = lambda *_: b""  # only the PTX is used

    class OfflineDriver:
        """Reports a GPU that is not there."""

        architecture = 80

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", self.architecture, 32)

        def get_current_device(self) -> int:
            return self.architecture  # the JIT has a cache per device

        def get_current_stream(self, device: int) -> int:
            return 0

    offline = OfflineDriver()
    driver.set_active(offline)
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        try:
            offline.architecture = request.architecture
            answer: Compiled | Exception = _compile(request)
        except Exception as error:
            answer = RuntimeError(f"{request.kernel} does not compile for sm_{request.architecture}: {error}")
        pickle.dump(answer, answers)
        answers.flush()


def _compile(request: Request) -> Compiled:
    kernel = getattr(importlib.import_module(request.module), request.kernel)
    compiled = kernel.run(grid=(1,), warmup=True, **request.arguments, **request.options)
    parameters = [name for name, kind in compiled.src.signature.items() if kind != "constexpr"]
    metadata = compiled.metadata
    return Compiled(compiled.asm["ptx"], metadata.name, parameters, metadata.shared, metadata.num_warps)


if __name__ == "__main__":
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a print must not disturb the answers
    from tests.ptx.triton_compiler import serve as serve_requests  # pickle knows the classes under this name

    serve_requests(sys.stdin.buffer, output)
