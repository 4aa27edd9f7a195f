"""Worlds by name."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any, TypeVar

from sad.envs.protocol import Env
from sad.errors import InputError

_WORLDS: dict[str, Callable[..., Env]] = {}
World = TypeVar("World", bound=Callable[..., Env])


def register(name: str) -> Callable[[World], World]:
    """Class decorator that makes a world known to `make`.

    The class is called as `cls(root=..., split=..., seed=..., **options)`.

    Raises:
        InputError: The name is taken.
    """

    def add(world: World) -> World:
        if name in _WORLDS:
            raise InputError("name", "the name of a new world", repr(name), "Choose a name that is not registered yet.")
        _WORLDS[name] = world
        return world

    return add


def names() -> list[str]:
    """The names `make` knows."""
    return sorted(_WORLDS)


def make(name: str, root: str | PathLike[str] | None = None, split: str | None = None, seed: int = 0, **options: Any) -> Env:
    """Makes a world.

    Args:
        name: A registered name, such as `"household"`.
        root: Folder of the world's data, for worlds that need one.
        split: Which tasks, such as `"train"` or `"valid"`; None takes the world's default.
        seed: Source of everything random in the world. The same arguments give the same world, in any process.
        **options: What else the world offers, passed on.

    Raises:
        InputError: The name is not registered, or the world refuses an argument.
    """
    if name not in _WORLDS:
        raise InputError("name", "one of " + ", ".join(names()), repr(name), "Pass one of these names, or register it.")
    return _WORLDS[name](root=root, split=split, seed=seed, **options)
