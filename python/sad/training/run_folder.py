"""The folder of one training run: what was asked for, what was measured, and the model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from sad.errors import InputError


class RunFolder:
    """Paths and records of a run.

        config.yaml       the settings; `sad train --config` reads it back
        run.json          versions, and what became of the data
        metrics.jsonl     one line per log
        curriculum.json   difficulties of the trajectories
        checkpoint-N/     to resume from
        model/            the trained student with its tokenizer

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config, self.run, self.metrics = (self.path / n for n in ("config.yaml", "run.json", "metrics.jsonl"))
        self.model = self.path / "model"

    def check_new(self) -> None:
        """Nothing is there yet.

        Raises:
            InputError: The folder holds something, or is none.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError("out", "a folder", f"{str(self.path)!r}, which is a file", "Choose another name.")
        if self.path.is_dir() and any(self.path.iterdir()):
            remedy = "Choose another folder, or continue that run with --resume."
            raise InputError("out", "a new or empty folder", f"{str(self.path)!r}, which holds another run", remedy)

    def check_resumable(self) -> None:
        """A run was begun here.

        Raises:
            InputError: It was not.
        """
        if not self.config.is_file():
            remedy = "Leave --resume out to begin a run there."
            raise InputError("out", "the folder of a run to resume", f"{str(self.path)!r} without config.yaml", remedy)

    def last_checkpoint(self) -> str | None:
        """The checkpoint to resume from, or None if the run had none yet."""
        return get_last_checkpoint(str(self.path))

    def write_config(self, settings: dict[str, Any]) -> None:
        """Keeps the settings. Whole or not at all, as the other records."""
        _write(self.config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def write_run(self, record: dict[str, Any]) -> None:
        """Keeps what was found about data and versions."""
        _write(self.run, json.dumps(record, indent=2) + "\n")

    def check_same_data(self, digest: str) -> None:
        """The run began with these very tokens and labels.

        Raises:
            InputError: It began with others, so that going on would not be resuming.
        """
        began = json.loads(self.run.read_text()).get("data_sha256") if self.run.is_file() else None
        if began not in (None, digest):
            remedy = "Resume with the same file, format and max_length, or begin a new run."
            raise InputError("data", f"the tokens and labels that {self.path} began with", "others", remedy)


class MetricsWriter(TrainerCallback):
    """Appends every log to `metrics.jsonl`, as it happens. Lines later than the checkpoint a run resumes from go first.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero and self._path.is_file():
            lines = self._path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step]
            _write(self._path, "".join(kept))

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero and logs:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    os.replace(partial, path)
