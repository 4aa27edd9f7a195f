"""Checkpoints that are complete or absent: saved under a hidden name, with a manifest, and verified before a resume."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from sad import files
from sad.errors import InputError

STAGING_NAME = ".saving.partial"
_NAME = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Returns the checkpoints in a run folder, the newest first, whether complete or not."""
    found = [(int(match[1]), path) for path in Path(folder).glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True) if path.is_dir()]


def newest_complete(folder: str | Path, say: Callable[[str], None]) -> Path | None:
    """Returns the newest checkpoint whose files are those that were saved.

    Args:
        folder: The run folder.
        say: Receives one line per checkpoint that is skipped.
    """
    for path in list_checkpoints(folder):
        damage = files.find_damage(path)
        if damage is None:
            return path
        say(f"skipped {path}: {damage}")
    return None


def check_complete(path: str | Path) -> None:
    """Checks a checkpoint that the user chose. One without a manifest, from another program, is accepted.

    Raises:
        InputError: A file is missing, or was changed.
    """
    if not (Path(path) / files.MANIFEST_NAME).is_file():
        return
    if damage := files.find_damage(Path(path)):
        remedy = "Resume from an older checkpoint, or pass resume_from_checkpoint=True for the newest complete one."
        raise InputError("resume_from_checkpoint", "a checkpoint as it was saved", f"{str(path)!r}: {damage}", remedy)


def check_strategy(path: str | Path, strategy: str, processes: int) -> None:
    """Checks that the weights and the optimizer of a checkpoint can be loaded by the strategy of this run.

    Args:
        path: The checkpoint.
        strategy: "FSDP", "DeepSpeed", or "one model per process" (one process, or DDP).
        processes: The number of processes, to which DeepSpeed ties its optimizer.

    Raises:
        InputError: They cannot.
    """
    states = [file for file in Path(path).glob("global_step*/*_optim_states.pt") if "zero_pp_rank" in file.name]
    if states or next(Path(path).glob("global_step*"), None):
        saved = "DeepSpeed"
    else:
        saved = "FSDP" if next(Path(path).glob("pytorch_model_fsdp*"), None) else "one model per process"
    remedy = "Resume with the configuration of accelerate that it was saved with, or start a new run from its model."
    if saved != strategy:
        got = f"{str(path)!r}, saved with {saved}"
        raise InputError("resume_from_checkpoint", f"a checkpoint saved with {strategy}", got, remedy)
    if states and len(states) != processes:
        expected = f"a DeepSpeed checkpoint of {processes} processes"
        raise InputError("resume_from_checkpoint", expected, f"{str(path)!r}, saved by {len(states)}", remedy)


def publish(staged: Path, target: Path) -> None:
    """Writes the manifest of a saved checkpoint and moves it to its place."""
    files.write_manifest(staged)
    files.publish_folder(staged, target)


def rotate(folder: str | Path, limit: int | None, best: str | None) -> None:
    """Deletes the oldest checkpoints above a limit.

    Args:
        folder: The run folder.
        limit: Number of checkpoints to keep; None or 0: all.
        best: A checkpoint to keep in any case.
    """
    if not limit or limit < 0:
        return
    found = list_checkpoints(folder)
    kept = {found[0]} if found else set()
    if best is not None:
        kept |= {path for path in found if path.resolve() == Path(best).resolve()}
    for path in found:
        if len(kept) < limit:
            kept.add(path)
    for path in reversed(found):
        if path not in kept:
            files.remove_folder(path)


def clear_staging(folder: str | Path) -> Path:
    """Deletes what an interrupted save left, and returns the folder in which checkpoints are saved."""
    staging = Path(folder) / STAGING_NAME
    if staging.exists():
        shutil.rmtree(staging)
    return staging
