"""A game: what the agent is told, the scene it finds, and what has to hold in the end."""

from __future__ import annotations

from typing import NamedTuple

from sad.envs.household.dialect import PLAIN, Dialect
from sad.envs.household.goal import Goal
from sad.envs.household.scene import Scene
from sad.envs.protocol import Task


class Game(NamedTuple):
    """A task in its scene.

    Attributes:
        task: What the agent is told.
        scene: How things stand at the start.
        goal: What has to hold in the end.
        dialect: The words in which it is played.
    """

    task: Task
    scene: Scene
    goal: Goal
    dialect: Dialect = PLAIN
