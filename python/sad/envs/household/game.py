"""A scene: rooms full of things, as they stand when an episode begins. Nothing here changes during play."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple


class Receptacle(NamedTuple):
    """A place that holds things.

    Attributes:
        name: Kind and number, such as `cabinet 2`.
        kind: Such as `cabinet`.
        spot: Number of the standing spot from which it is reached; several receptacles may share one.
        openable: Whether it has a door, lid or front that is opened and closed.
    """

    name: str
    kind: str
    spot: int
    openable: bool


class Thing(NamedTuple):
    """An object.

    Attributes:
        name: Kind and number, such as `mug 1`.
        kind: Such as `mug`.
        traits: Of `pickupable cleanable heatable coolable toggleable sliceable hollow`; hollow things can hold others.
    """

    name: str
    kind: str
    traits: frozenset[str]


@dataclass(frozen=True)
class Scene:
    """Everything that is there. Receptacles and things are referred to by their index.

    Attributes:
        receptacles: In the order in which the room is described.
        things: In the order in which they are listed when seen together.
        inside: For each receptacle, the indices of the things in or on it. A thing may be reachable from two receptacles.
        holds: Receptacle kind to the kinds of things that may be put there.
        start: The spot where the agent begins; no receptacle is reached from there as a rule.
        opened: Receptacles that are open at the start.
        cool: Things that are cool at the start.
        spots: For each thing the spots where a knife reaches it; None takes those of the receptacles that hold it.
        within: Hollow thing to the things in it.
    """

    receptacles: tuple[Receptacle, ...]
    things: tuple[Thing, ...]
    inside: tuple[tuple[int, ...], ...]
    holds: Mapping[str, frozenset[str]]
    start: int
    opened: frozenset[int] = frozenset()
    cool: frozenset[int] = frozenset()
    spots: tuple[frozenset[int], ...] | None = None
    within: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    @cached_property
    def ways(self) -> dict[int, dict[str, Any]]:
        """A memo for the rules: spot to the commands and actions that lead away from it."""
        return {}

    @cached_property
    def by_spot(self) -> dict[int, list[int]]:
        """Spot to the receptacles reached from it."""
        by_spot: dict[int, list[int]] = {}
        for index, receptacle in enumerate(self.receptacles):
            by_spot.setdefault(receptacle.spot, []).append(index)
        return by_spot

    @cached_property
    def thing_spots(self) -> tuple[frozenset[int], ...]:
        """For each thing, the spots where a knife reaches it at the start."""
        if self.spots is not None:
            return self.spots
        spots: list[set[int]] = [set() for _ in self.things]
        for receptacle, contents in zip(self.receptacles, self.inside):
            for thing in contents:
                spots[thing].add(receptacle.spot)
        return tuple(frozenset(s) for s in spots)
