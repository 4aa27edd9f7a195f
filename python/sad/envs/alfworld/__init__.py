"""`alfworld`: ALFWorld's own games on the household engine; `alfworld-official`: the same games on the official engine."""

from __future__ import annotations

from sad.envs.alfworld.env import Alfworld
from sad.envs.alfworld.official import OfficialAlfworld

__all__ = ["Alfworld", "OfficialAlfworld"]
