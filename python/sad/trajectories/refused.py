"""Trajectories that cannot be read or encoded: collected, so that one of them does not hide the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from sad.errors import InputError

if TYPE_CHECKING:
    from sad.trajectories.trajectory import Trajectory

_SHOWN = 3
_SKIP = "To train without such trajectories, pass --on-error skip (on_error='skip')."


class Refused(NamedTuple):
    """A trajectory that cannot be used.

    Args:
        id: The id of the trajectory; of a record that cannot be read, file and line.
        error: Why; its message names the file and the line, if they are known.
    """

    id: str
    error: InputError


def refusal(trajectory: Trajectory, error: InputError) -> Refused:
    """Returns the record of a trajectory that raised an error, with its file and line."""
    where = f"{trajectory.where}, {error.where}" if trajectory.where else error.where
    return Refused(trajectory.id, InputError(where, error.expected, error.got, error.remedy))


def stop_error(refused: Sequence[Refused], total: int, remedy: str = _SKIP) -> InputError:
    """Returns the error that stops a command: that of the only refused trajectory, or the count and the first three.

    Args:
        refused: At least one refused trajectory.
        total: Number of all trajectories.
        remedy: What to do besides fixing them.
    """
    first = refused[0].error
    if len(refused) == 1:
        return InputError(first.where, first.expected, first.got, f"{first.remedy} {remedy}".strip())
    lines = "".join(f"\n  {item.error}" for item in refused[:_SHOWN])
    more = f"\n  and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    got = f"{len(refused)} of {total} that cannot be used:{lines}{more}".removesuffix(".")  # `InputError` adds one
    return InputError("trajectories", "trajectories that can be read and labelled", got, f"Fix them. {remedy}".strip())
