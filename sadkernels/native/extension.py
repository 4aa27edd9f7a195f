"""Finds the compiled extensions, and says what to do when one is not there."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

_BUILT_WITH = {"cpu": "a C++17 compiler", "cuda": "the CUDA toolkit (nvcc)"}


@functools.cache
def load(name: str) -> ModuleType:
    """The extension `name` ("cpu" or "cuda").

    Raises:
        ImportError: It was not built, or does not fit this Python.
    """
    return importlib.import_module(f"sadkernels.native._{name}")


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
