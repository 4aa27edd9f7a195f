"""The registry of environments by name."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any, TypeVar

from sad.envs.protocol import Env
from sad.errors import InputError

_ENVS: dict[str, Callable[..., Env]] = {}
EnvClass = TypeVar("EnvClass", bound=Callable[..., Env])


def register(name: str) -> Callable[[EnvClass], EnvClass]:
    """Returns a class decorator that registers an environment under `name`.

    `make` calls the class as `cls(root=..., split=..., seed=..., **options)`.

    Raises:
        InputError: The name is already registered.
    """

    def add(env_class: EnvClass) -> EnvClass:
        if name in _ENVS:
            raise InputError("name", "the name of a new env", repr(name), "Choose a name that is not registered yet.")
        _ENVS[name] = env_class
        return env_class

    return add


def names() -> list[str]:
    """Returns the registered names, sorted."""
    return sorted(_ENVS)


def make(name: str, root: str | PathLike[str] | None = None, split: str | None = None, seed: int = 0, **options: Any) -> Env:
    """Creates an environment.

    Args:
        name: A registered name, such as `"household"`.
        root: Data folder of the environment. Environments without data files need none.
        split: Set of tasks, such as `"train"` or `"valid"`. None selects the default of the environment.
        seed: Random seed. The same arguments create the same environment in every process.
        **options: Further options of the environment.

    Raises:
        InputError: The name is not registered, or the environment rejects an argument.
    """
    if name not in _ENVS:
        raise InputError("name", "one of " + ", ".join(names()), repr(name), "Pass one of these names, or register it.")
    return _ENVS[name](root=root, split=split, seed=seed, **options)
