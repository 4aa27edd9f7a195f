"""Makes the shared files of all environments of a study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sad import files
from sad.study.assets import Assets
from sad.study.cells import combinations
from sad.study.config import Study


def prepare(study: Study, folder: Path, say: Callable[[str], None]) -> None:
    """Makes the data, the teachers and the pretrained students that do not exist yet.

    Args:
        study: The study.
        folder: Its folder.
        say: Receives a line before and after each part.

    Raises:
        InputError: An environment has too few tasks, or a teacher solves none.
    """
    used: dict[str, dict[str, None]] = {}
    for environment, student, _, _ in combinations(study):
        used.setdefault(environment, {})[student] = None
    (folder / "assets").mkdir(parents=True, exist_ok=True)
    files.remove_partials(folder / "assets")
    for name, students in used.items():
        assets = Assets(folder, name, study.environments[name])
        assets.make({student: study.students[student] for student in students}, say)
