"""Worlds that agents play in: `make(name)` gives one, `register(name)` adds one."""

from __future__ import annotations

from sad.envs import alfworld as _alfworld  # noqa: F401  registers itself
from sad.envs import hotpotqa as _hotpotqa  # noqa: F401  registers itself
from sad.envs import household as _household  # noqa: F401  registers itself
from sad.envs import webshop as _webshop  # noqa: F401  registers itself
from sad.envs.protocol import Env, Step, Task
from sad.envs.registry import make, names, register

__all__ = ["Env", "Step", "Task", "make", "names", "register"]
