"""`alfworld`: ALFWorld's own games on the household engine; `alfworld-official`: the same games on the official engine."""

from __future__ import annotations

from sad.agents.envs.alfworld.env import Alfworld
from sad.agents.envs.alfworld.official import OfficialAlfworld

__all__ = ["Alfworld", "OfficialAlfworld"]
