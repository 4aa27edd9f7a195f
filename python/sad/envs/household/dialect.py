"""In which words a game takes and answers the commands that ALFWorld has worded in more than one way."""

from __future__ import annotations

from typing import NamedTuple


class Dialect(NamedTuple):
    """The wording of a game, where games differ.

    Attributes:
        place: The command that places a thing, with `{thing}` and `{place}`.
        placed: The answer to it, with the same.
        arrival: What is said before one sees where one went, with `{place}` and `{spot}` (the number of the standing spot).
        help: The answer to `help`, which is then an admissible command; empty where the game has no such command.
    """

    place: str = "put {thing} in/on {place}"
    placed: str = "You put the {thing} in/on the {place}."
    arrival: str = ""
    help: str = ""


PLAIN = Dialect()  # of ReAct-style transcripts
NUMBERED = Dialect(arrival="You arrive at loc {spot}. ")  # of ALFWorld's games before its version 0.4
