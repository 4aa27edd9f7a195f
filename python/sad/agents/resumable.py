"""A trajectory file that is written episode by episode, so that an interrupted collection or evaluation can resume."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sad.errors import InputError
from sad.files import lock_stream, write_file
from sad.trajectories.read import read_jsonl
from sad.trajectories.trajectory import Trajectory, from_record, json_line, write_jsonl

_CHECKSUM = b"crc32"
_SEALED = re.compile(rb'(\{.*), "%s": (\d{1,10})\}\n' % _CHECKSUM, re.DOTALL)


class ResumableFile:
    """A trajectory file that can be completed over several runs.

    `add` appends each finished episode to `OUT.partial`, in the order of completion. The last key of a line, `crc32`, is the
    checksum of the line without it. `OUT.settings.json` records the
    options of the run and remains. `finish` writes OUT and removes `OUT.partial`.

    Args:
        out: Path of the final file, `.jsonl` or `.jsonl.gz`.
        config: All options that determine the episodes, as JSON values.
        resume: Continue with existing files, if there are any.

    Attributes:
        trajectories: The finished trajectories by id. With `resume` those of a complete OUT too.
        complete: Whether OUT exists already.
        dropped_lines: Number of incomplete lines of an interrupted run: 0 or 1.

    Raises:
        InputError: A file exists and `resume` is not set, or the existing files were made with other options.
    """

    def __init__(self, out: Path, config: dict[str, Any], *, resume: bool = False) -> None:
        self._out = out
        self._partial = out.with_name(f"{out.name}.partial")
        self._config_path = out.with_name(f"{out.name}.settings.json")
        self.trajectories: dict[str, Trajectory] = {}
        self.dropped_lines = 0
        self.complete = out.exists()
        begun = self._partial.exists() and self._partial.stat().st_size > 0  # an empty one was created and then interrupted
        if not resume:
            for path, exists in ((out, self.complete), (self._partial, begun)):
                if exists:
                    remedy = "Choose another name, remove it, or continue it with --resume."
                    raise InputError("out", "a new file", f"{str(path)!r}, which exists", remedy)
        elif self.complete or begun:
            self._check_config(config)
            if self.complete:
                self.trajectories = {trajectory.id: trajectory for trajectory in read_jsonl(out)}
        self._config_text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
        self._stream: BinaryIO | None = None
        if not self.complete and begun:
            self._read_partial()

    def add(self, trajectory: Trajectory) -> None:
        """Appends a finished trajectory to `OUT.partial` and flushes it."""
        if self._stream is None:  # opened late, so that a run without an episode leaves no files
            stream = self._partial_stream()
            lock_stream(stream, "out", self._partial)
            self._write_config()
            self._stream = stream
        self.trajectories[trajectory.id] = trajectory
        self._stream.write(_seal_line(json_line(trajectory)))
        self._stream.flush()

    def close(self) -> None:
        """Closes `OUT.partial` and releases its lock."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _partial_stream(self) -> BinaryIO:
        self._partial.parent.mkdir(parents=True, exist_ok=True)
        return self._partial.open("ab")

    def kept(self) -> str:
        """Says what an interrupted run keeps and how to continue it."""
        if self.complete:
            return f"{self._out} is complete."
        if not self.trajectories:
            return "No episode was finished. Run the command again."
        return f"{len(self.trajectories)} episodes are kept in {self._partial}. To continue, add --resume to the command."

    def finish(self, trajectories: Sequence[Trajectory]) -> None:
        """Writes OUT with these trajectories atomically and removes `OUT.partial`."""
        self.close()
        self._write_config()
        write_jsonl(self._out, trajectories)
        self._partial.unlink(missing_ok=True)
        self.complete = True

    def discard(self, *, keep_out: bool) -> None:
        """Deletes the files that only a continued run needs.

        Args:
            keep_out: Whether OUT stays. It goes if another file holds the result of the run.
        """
        self.close()
        for path in (self._partial, self._config_path, *(() if keep_out else (self._out,))):
            path.unlink(missing_ok=True)

    def _write_config(self) -> None:
        write_file(self._config_path, self._config_text)

    def _check_config(self, config: dict[str, Any]) -> None:
        try:
            before = json.loads(self._config_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            expected = f"{str(self._config_path)!r} of the interrupted run"
            remedy = "Without this file the options of that run are unknown: start a new file."
            raise InputError("--resume", expected, str(error), remedy) from None
        now = json.loads(json.dumps(config))
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            got = "; ".join(f"{key} was {_short(before.get(key))} and is {_short(now.get(key))}" for key in changed)
            remedy = "Use the same options, or choose another file."
            raise InputError("--resume", "the options of the interrupted run", got, remedy)

    def _read_partial(self) -> None:
        with self._partial.open("rb+") as file:
            content = file.read()
            end = content.rfind(b"\n") + 1
            self.dropped_lines = int(end < len(content))
            file.truncate(end)
        for number, line in enumerate(content[:end].splitlines(keepends=True), 1):
            trajectory = _open_line(line, f"{self._partial}, line {number}")
            self.trajectories[trajectory.id] = trajectory


def _seal_line(line: bytes) -> bytes:
    """Adds the key `crc32` to a line that holds a JSON object."""
    return line.removesuffix(b"}\n") + b', "%s": %d}\n' % (_CHECKSUM, zlib.crc32(line))


def _open_line(line: bytes, where: str) -> Trajectory:
    """Returns the trajectory in a line of `_seal_line`.

    Raises:
        InputError: The line is not what was written.
    """
    sealed = _SEALED.fullmatch(line)
    content = sealed[1] + b"}\n" if sealed else b""
    if sealed is None or zlib.crc32(content) != int(sealed[2]):
        remedy = "Delete the line: its episode is then played again."
        raise InputError(where, "a line as it was written", "one without its checksum, or changed", remedy)
    return from_record(json.loads(content), where)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
