"""`household`: ALFWorld's six task types in generated rooms, under ALFWorld's rules and wording."""

from __future__ import annotations

from sad.envs.household.env import Household, HouseholdEnv

__all__ = ["Household", "HouseholdEnv"]
