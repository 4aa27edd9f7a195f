"""Text environments for agents. `make(name)` creates an environment, `register(name)` adds a new one."""

from __future__ import annotations

# These imports register the built-in environments.
from sad.envs import alfworld as _alfworld  # noqa: F401
from sad.envs import hotpotqa as _hotpotqa  # noqa: F401
from sad.envs import household as _household  # noqa: F401
from sad.envs import webshop as _webshop  # noqa: F401
from sad.envs.protocol import Env, Step, Task
from sad.envs.registry import make, names, register

__all__ = ["Env", "Step", "Task", "make", "names", "register"]
