"""Rollouts on disk, so that a resumed run goes on with the ones that it had."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sad import files
from sad.trajectories.read import read_jsonl
from sad.trajectories.trajectory import Trajectory, write_jsonl

_NAME = re.compile(r"step-(\d+)\.jsonl\.gz")


class ReplayBuffer:
    """A folder with one trajectory file per rollout, `step-N.jsonl.gz`. A file appears complete or not at all.

    The file of step N was played by the student after N optimizer steps. So a run that resumes from the checkpoint of step C
    keeps the files with N <= C, and plays the later ones again: they belong to steps that it has not taken yet.

    Args:
        folder: The folder; it is created with the first file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Returns the steps with a file, in order."""
        return sorted(int(match[1]) for path in self.folder.glob("step-*") if (match := _NAME.fullmatch(path.name)))

    def write(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        """Writes the rollout of a step. A file of the same step is replaced."""
        write_jsonl(self._path(step), trajectories, overwrite=True)

    def read(self, step: int) -> list[Trajectory]:
        """Reads the rollout of a step.

        Raises:
            InputError: The file was changed.
        """
        return read_jsonl(self._path(step))

    def forget_after(self, step: int) -> None:
        """Deletes the rollouts after a step, and the temporary files of killed processes."""
        if not self.folder.is_dir():
            return
        files.remove_partials(self.folder)
        for found in self.steps():
            if found > step:
                self._path(found).unlink()

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.jsonl.gz"
