"""Shows a training in the terminal: what a step is made of, and one row of numbers per log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

# Heading, name in the log, width and format.
Column = tuple[str, str, int, str]
_LOSSES: tuple[Column, ...] = (
    ("loss", "loss", 9, ".4f"),
    ("reason", "loss_reason", 9, ".4f"),
    ("act", "loss_act", 9, ".4f"),
)
_COLUMNS: tuple[Column, ...] = (
    *_LOSSES,
    ("observe", "loss_observe", 9, ".4f"),
    ("agree", "agreement", 7, ".1%"),
    ("lr", "learning_rate", 9, ".1e"),
    ("tok/s", "tokens_per_second", 8, ",.0f"),
    ("GiB", "peak_memory_gib", 6, ".2f"),
)
_ON_POLICY_COLUMNS: tuple[Column, ...] = (
    *_LOSSES,
    ("own", "on_policy_share", 6, ".0%"),
    ("reason", "on_policy_loss_reason", 9, ".4f"),
    ("act", "on_policy_loss_act", 9, ".4f"),
    ("solved", "rollout_success", 7, ".0%"),
    ("lr", "learning_rate", 8, ".1e"),
)
_STEP_WIDTH = 14


def step_line(trainer: Trainer) -> str:
    """Returns what one optimizer step is made of, such as "1 process x 8 x 8 accumulated = 64 trajectories per step"."""
    args = trainer.args
    processes = max(args.world_size // trainer.get_tp_size(), 1)
    per_process = args.train_batch_size
    total = processes * per_process * args.gradient_accumulation_steps
    plural = "process" if processes == 1 else "processes"
    accumulated = f" x {args.gradient_accumulation_steps} accumulated" if args.gradient_accumulation_steps > 1 else ""
    return f"{processes} {plural} x {per_process}{accumulated} = {total} trajectories per step"


class LogTable(TrainerCallback):
    """Prints a table with one row per log, at most 80 columns wide, instead of a dict.

    A column appears if the first log has its name. With the student's own trajectories, "own" is their share of the batches;
    the losses before it are on the teacher's trajectories, those after it on the student's own.

    Args:
        say: Receives the lines.
    """

    def __init__(self, say: Callable[[str], None] = tqdm.write) -> None:
        self._say = say
        self._columns: tuple[Column, ...] = ()

    @classmethod
    def install(cls, trainer: Trainer) -> None:
        """Adds a table to a trainer and removes the printing of dicts. A progress bar stays."""
        trainer.remove_callback(PrinterCallback)
        if any(type(callback) is ProgressCallback for callback in trainer.callback_handler.callbacks):
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(_BarOnly)
        trainer.add_callback(cls())

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            row = {**logs, "agreement": _agreement(logs, "")}
            if not self._columns:
                found = tuple(column for column in _COLUMNS if row.get(column[1]) is not None)
                self._columns = _ON_POLICY_COLUMNS if "on_policy_share" in row else found
                heads = "".join(f"{heading:>{width}}" for heading, _, width, _ in self._columns)
                self._say(f"{'step':>{_STEP_WIDTH}}{heads}")
            self._print(f"{state.global_step}/{state.max_steps}", row)
            return
        for name in logs:  # an evaluation; its names are eval_loss, or eval_NAME_loss for a named set
            if name.startswith("eval_") and name.endswith("_loss") and self._columns:
                prefix = name.removesuffix("loss")
                row = {key.removeprefix(prefix): value for key, value in logs.items() if key.startswith(prefix)}
                self._print(prefix.rstrip("_").replace("_", " ", 1), {**row, "agreement": _agreement(logs, prefix)})

    def _print(self, first: str, row: Mapping[str, Any]) -> None:
        cells = (row.get(name) for _, name, _, _ in self._columns)
        shown = (
            " " * width if value is None else f"{float(value):>{width}{form}}"
            for value, (_, _, width, form) in zip(cells, self._columns)
        )
        self._say(f"{first[:_STEP_WIDTH]:>{_STEP_WIDTH}}{''.join(shown)}".rstrip())


class _BarOnly(ProgressCallback):
    """The progress bar of transformers without the logs."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        pass


def _agreement(logs: Mapping[str, Any], prefix: str) -> float | None:
    """Returns the share of all supervised tokens on which student and teacher agree, or None."""
    kinds = [kind for kind in ("reason", "act", "observe") if f"{prefix}tokens_{kind}" in logs]
    tokens = sum(logs[f"{prefix}tokens_{kind}"] for kind in kinds)
    agreeing = sum(logs[f"{prefix}agreement_{kind}"] * logs[f"{prefix}tokens_{kind}"] for kind in kinds)
    return agreeing / tokens if tokens else None
