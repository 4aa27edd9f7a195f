"""The `household` environment: the six ALFWorld task types in generated rooms, with the rules and texts of ALFWorld."""

from __future__ import annotations

from sad.envs.household.env import Household, HouseholdEnv

__all__ = ["Household", "HouseholdEnv"]
