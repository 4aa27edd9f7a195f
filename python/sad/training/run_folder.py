"""The folder of a run: its files, and what may be written to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback

from sad import files
from sad.errors import InputError
from sad.training.config import SADConfig
from sad.training.peers import accumulation_after_move, launched_processes

_STEP_FIELDS = ("per_device_train_batch_size", "gradient_accumulation_steps")


class RunFolder:
    """The paths and records of a run folder.

        config.yaml       options and fields; `sad train --config` reads it back
        run.json          versions, and counts of the data
        metrics.jsonl     one line per log
        curriculum.json   difficulties of the trajectories
        rollouts/         what the student played, if it did
        checkpoint-N/     checkpoints to resume from
        model/            the trained student with its tokenizer

    Args:
        path: The folder; it may be missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config, self.run, self.metrics = (self.path / n for n in ("config.yaml", "run.json", "metrics.jsonl"))
        self.model = self.path / "model"

    def check_new(self) -> None:
        """Checks that the folder is missing or empty.

        Raises:
            InputError: It is not.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError("out", "a folder", f"{str(self.path)!r}, which is a file", "Choose another name.")
        if self.path.is_dir() and any(path.name != files.LOCK_NAME for path in self.path.iterdir()):
            remedy = "Choose another folder, or continue the run in it with --resume."
            raise InputError("out", "a new or empty folder", f"{str(self.path)!r}, which holds files", remedy)

    def check_resumable(self) -> None:
        """Checks that the folder holds a run, and that its `config.yaml` is as the run wrote it.

        Raises:
            InputError: It does not, or the file was changed.
        """
        if not self.config.is_file():
            remedy = "Remove --resume to start a run there."
            raise InputError("out", "the folder of a run to resume", f"{str(self.path)!r} without config.yaml", remedy)

        if not files.is_sealed_lines(self.config.read_text(encoding="utf-8", errors="replace")):
            got = "a file that was changed after the run wrote it"
            remedy = "Undo the change, and pass other values as flags; or start a new run with --config."
            raise InputError(str(self.config), "the file as the run wrote it", got, remedy)

    def write_config(self, values: dict[str, Any]) -> None:
        """Writes `config.yaml`, with a checksum in its first line."""
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        files.write_file(self.config, files.seal_lines(text))

    def write_run(self, record: dict[str, Any]) -> None:
        """Writes `run.json`, with a checksum."""
        files.write_record(self.run, record, indent=2)

    def for_these_processes(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
        """Returns the fields with which a resumed run keeps its trajectories per step, and a message about what changed.

        Raises:
            InputError: It cannot keep them with this number of processes.
        """
        values = dict(values)
        remedy = "Delete the file to resume without this check."
        before = files.read_record(self.run, remedy).get("steps") if self.run.is_file() else None
        if before is None:
            return values, ""
        defaults = {item.name: item.default for item in fields(SADConfig)}
        batch, accumulation = (values.get(name, defaults[name]) for name in _STEP_FIELDS)
        processes = launched_processes()
        kept, message = accumulation_after_move(tuple(before), batch, accumulation, processes)
        values[_STEP_FIELDS[1]] = kept
        return values, message

    def check_same_data(self, digest: str) -> None:
        """Checks that the run started with these tokens and labels.

        Args:
            digest: Hash of the current data.

        Raises:
            InputError: It started with others.
        """
        remedy = "Resume with the same file, format and max_length, or start a new run."
        self._check_same("data", "tokens and labels", "data_sha256", digest, remedy)

    def check_same_teacher(self, digest: str | None) -> None:
        """Checks that the run started with this teacher.

        Args:
            digest: Hash of the current teacher; None without one.

        Raises:
            InputError: It started with another one.
        """
        self._check_same("teacher", "teacher", "teacher_sha256", digest, "Resume with the same teacher, or start a new run.")

    def _check_same(self, argument: str, what: str, key: str, digest: str | None, remedy: str) -> None:
        unchecked = "Delete the file to resume without this check, if data and teacher are the same."
        started = files.read_record(self.run, unchecked).get(key) if self.run.is_file() else None
        if started not in (None, digest):
            raise InputError(argument, f"the {what} of the run in {self.path}", "another", remedy)


class MetricsWriter(TrainerCallback):
    """Appends every log to `metrics.jsonl`. A resumed run first removes the lines after its checkpoint.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero and self._path.is_file():
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and _is_up_to(line, state.global_step)]
            files.write_file(self._path, "".join(kept))

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero and logs:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def _is_up_to(line: str, step: int) -> bool:
    """Whether a line of `metrics.jsonl` was logged until a step. A damaged line was not."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
