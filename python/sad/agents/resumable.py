"""Episodes on disk as they finish, so that a collection that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sad.errors import InputError
from sad.trajectories.trajectory import Trajectory, json_line, read_jsonl, write_jsonl


class Journal:
    """A file of trajectories in the making.

    While it is made, each finished episode is a line of `OUT.partial`, in the order in which they finish;
    `OUT.settings.json` says what is played, and stays. `finish` writes OUT and removes `OUT.partial`.

    Args:
        out: The file that will hold the trajectories, `.jsonl` or `.jsonl.gz`.
        settings: All that the episodes depend on, ready for JSON.
        resume: Go on with what is there, if anything is.

    Attributes:
        done: Finished episodes by their id.
        complete: Whether OUT itself is there already, and nothing is left to do.
        dropped: Lines of a killed run that were cut off half-written: none or one.

    Raises:
        InputError: Something is there and `resume` is not set, or it was made with other settings.
    """

    def __init__(self, out: Path, settings: dict[str, Any], *, resume: bool = False) -> None:
        self._out = out
        self._partial, self._settings = out.with_name(f"{out.name}.partial"), out.with_name(f"{out.name}.settings.json")
        self.done: dict[str, Trajectory] = {}
        self.dropped = 0
        self.complete = out.exists()
        if not resume:
            for path in (out, self._partial):
                if path.exists():
                    remedy = "Choose another name, remove it, or go on with it: --resume."
                    raise InputError("out", "a new file", f"{str(path)!r}, which exists", remedy)
        elif self.complete or self._partial.exists():
            self._check(settings)
        self._written = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
        self._lines: BinaryIO | None = None
        if not self.complete and self._partial.exists():
            self._read()

    def add(self, trajectory: Trajectory) -> None:
        """Keeps a finished episode; the file has it when this returns."""
        if self._lines is None:  # not before: a run that comes to nothing leaves nothing
            self._begin()
            self._lines = self._partial.open("ab")
        self.done[trajectory.id] = trajectory
        self._lines.write(json_line(trajectory))
        self._lines.flush()

    def finish(self, trajectories: Sequence[Trajectory]) -> None:
        """Writes the file itself with these trajectories, all or nothing."""
        if self._lines is not None:
            self._lines.close()
        self._begin()
        write_jsonl(self._out, trajectories)
        self._partial.unlink(missing_ok=True)

    def _begin(self) -> None:
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._settings.write_text(self._written, encoding="utf-8")

    def _check(self, settings: dict[str, Any]) -> None:
        try:
            before = json.loads(self._settings.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            remedy = "Without it nobody knows how the episodes were made: start anew under another name."
            raise InputError("--resume", f"{str(self._settings)!r} of the run before", str(error), remedy) from None
        now = json.loads(json.dumps(settings))
        other = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if other:
            got = "; ".join(f"{key} was {_shown(before.get(key))} and is {_shown(now.get(key))}" for key in other)
            raise InputError("--resume", "the settings of the run before", got, "Repeat them, or choose another file.")

    def _read(self) -> None:
        with self._partial.open("rb+") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            self.dropped = int(whole < len(content))
            file.truncate(whole)
        self.done = {trajectory.id: trajectory for trajectory in read_jsonl(self._partial)}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
