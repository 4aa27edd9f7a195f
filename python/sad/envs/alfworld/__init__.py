"""The ALFWorld games: `alfworld` on the household engine, `alfworld-official` on the official engine."""

from __future__ import annotations

from sad.envs.alfworld.env import Alfworld, OfficialAlfworld

__all__ = ["Alfworld", "OfficialAlfworld"]
