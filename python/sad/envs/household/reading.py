"""Understanding the household's text: what an agent can know from what it was told."""

from __future__ import annotations

import re
from typing import NamedTuple

from sad.envs.household.goal import PREAMBLE, TEMPLATES, Goal
from sad.errors import InputError

_NAME = re.compile(r"\ba ([a-z]+ \d+)")
_INSIDE = re.compile(r"(?:On the|The) ([a-z]+ \d+)(?: is open\. In it)?, you see ([^.]*)\.")
_CLOSED = re.compile(r"The ([a-z]+ \d+) is closed\.")
_GOALS = [
    (kind, re.compile(re.escape(template).replace(r"\{thing\}", r"(?P<thing>\w+)").replace(r"\{place\}", r"(?P<place>\w+)")))
    for kind, templates in TEMPLATES.items()
    for template in templates
]


class Sight(NamedTuple):
    """What an observation shows of one receptacle.

    Attributes:
        place: Its name.
        things: The names of what is in or on it; None if it is closed.
    """

    place: str
    things: list[str] | None


def kind_of(name: str) -> str:
    """`mug` of `mug 1`."""
    return name.rpartition(" ")[0]


def places_of(introduction: str) -> list[str]:
    """The receptacles that the first observation names, in its order."""
    return _NAME.findall(introduction.partition(PREAMBLE)[0])


def goal_of(text: str) -> Goal:
    """The goal that a text asks for in one of the templates' wordings; anything may come before it.

    Raises:
        InputError: No template fits.
    """
    asked = text.rpartition(PREAMBLE)[2].strip()
    for task_type, pattern in _GOALS:
        if match := pattern.fullmatch(asked):
            return Goal(task_type, match["thing"], match["place"])
    raise InputError("task", "a goal in one of the household's wordings", repr(asked), "See goal.TEMPLATES.")


def sight_of(observation: str) -> Sight | None:
    """The receptacle that an observation shows, if any."""
    if match := _INSIDE.search(observation):
        return Sight(match[1], _NAME.findall(match[2]))
    if match := _CLOSED.search(observation):
        return Sight(match[1], None)
    return None
