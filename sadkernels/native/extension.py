"""Finds the compiled extensions, and says what to do when one is not there."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from types import ModuleType

_BUILT_WITH = {"cpu": "a C++17 compiler", "cuda": "the CUDA toolkit (nvcc)"}


def load(name: str) -> ModuleType:
    """The extension `name` ("cpu" or "cuda").

    For "cuda" the environment variable SAD_CUDA_EMULATED may name a library of the same kernels for the host, as
    TRITON_INTERPRET=1 does for Triton: it then takes CPU tensors. Tests use it.

    Raises:
        ImportError: It was not built, or does not fit this Python.
    """
    found = _load(name, emulation(name))
    if isinstance(found, str):
        raise ImportError(found)
    return found


def emulation(name: str) -> str | None:
    """The library that stands in for the extension, when there is one."""
    return os.environ.get("SAD_CUDA_EMULATED") if name == "cuda" else None


def missing(name: str) -> str | None:
    """Why the extension cannot be used, with the remedy; None when it can."""
    try:
        load(name)
    except ImportError as error:
        return (
            f"the extension sadkernels.native._{name} cannot be loaded ({error}); with {_BUILT_WITH[name]} on the "
            "PATH, `pip install --force-reinstall --no-deps --no-cache-dir structured-agent-distillation` builds it"
        )
    return None


@functools.cache  # failures as well: looking again at every call would cost each of them
def _load(name: str, emulated: str | None) -> ModuleType | str:
    try:
        if emulated is None:
            return importlib.import_module(f"sadkernels.native._{name}")
        spec = importlib.util.spec_from_file_location(f"_{name}", emulated)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except ImportError as error:
        return str(error)
