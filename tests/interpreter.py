"""Triton's interpreter in less time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


@functools.cache
def patch_language_once_per_launch() -> None:
    """Lets a launch patch `triton.language` once, not again at every call of a device function.

    The interpreter replaces the functions of `triton.language` before a launch. It repeats this at each call of a device
    function, where it changes nothing and takes 40 % of the time of our kernels.
    """
    try:
        from triton import language
        from triton.runtime import interpreter
    except ImportError:
        return
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[tuple[bool, bool]] = set()

    def patch_once(function: Callable) -> Any:
        values = function.__globals__.values()
        modules = any(x is language for x in values), any(x is language.core for x in values)
        if modules in patched:
            return None
        patched.add(modules)
        return patch(function)

    def launch_alone(*args: Any, **kwargs: Any) -> Any:
        patched.clear()
        try:
            return launch(*args, **kwargs)
        finally:
            patched.clear()  # the launch has restored the functions

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_once, launch_alone
