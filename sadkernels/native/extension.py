"""Finds and loads the compiled extensions."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from types import ModuleType

_BUILT_WITH = {"cpu": "a C++17 compiler", "cuda": "the CUDA toolkit (nvcc)"}


def load(name: str) -> ModuleType:
    """Returns the extension `name` ("cpu" or "cuda").

    For tests, the environment variable SAD_CUDA_EMULATED may name a build of the CUDA kernels for the host, which takes CPU
    tensors. It corresponds to TRITON_INTERPRET=1 for Triton.

    Raises:
        ImportError: The extension was not built, or not for this Python.
    """
    found = _load(name, emulation(name))
    if isinstance(found, str):
        raise ImportError(found)
    return found


def emulation(name: str) -> str | None:
    """Returns the path of the library that replaces the extension, or None."""
    return os.environ.get("SAD_CUDA_EMULATED") if name == "cuda" else None


def missing(name: str) -> str | None:
    """Returns why the extension cannot be loaded, with the remedy, or None."""
    try:
        load(name)
    except ImportError as error:
        return (
            f"the extension sadkernels.native._{name} cannot be loaded ({error}); with {_BUILT_WITH[name]} on the "
            "PATH, `pip install --force-reinstall --no-deps --no-cache-dir .` in the checkout builds it"
        )
    return None


@functools.cache  # also caches failures, so that no later call searches again
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
