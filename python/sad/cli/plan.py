"""`sad plan`: computes the GPU memory of a training run before anything is downloaded or started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import typer

from sad.cli.flags import takes
from sad.options import option
from sad.planner.request import PlanRequest

if TYPE_CHECKING:
    from sad.planner.plan import ModePlan, Plan

_COLUMNS = ("mode", "fits", "micro-batch", "weights", "gradients", "optimizer", "teacher", "activations", "loss", "peak")
_DESCRIPTIONS = {
    "naive": "logits of both models and PyTorch's KL",
    "linear": "sad.fused_linear_span_kl on the supervised rows, in chunks",
    "cached": "the teacher's top {k} log-probabilities per token from disk; all others are one bucket",
    "hidden": "the teacher's hidden states from disk, its head in memory; any temperature and divergence",
}
_CACHE_COLUMNS = ("mode", "exact", "bytes per token", "GB per million tokens", "GB of the head")


@dataclass(frozen=True)
class PlanOptions(PlanRequest):
    """The request and the form of the output."""

    as_json: bool = option(False, flag="--json", help="Print one JSON object, in bytes, instead of a table.")


@takes(PlanOptions)
def command(options: PlanOptions) -> None:
    """Show what fits on a GPU: memory by term, the largest micro-batch, and the command to run.

    Reads only the models' configs: it downloads nothing and needs no GPU. It knows GPT-2, OPT, LLaMA, Qwen2.5 and Qwen3
    by name. The exit code is 1 if neither linear nor cached fits. With --on-policy there is no cache: no file holds the text
    that the student writes.
    """
    import json

    import transformers

    from sad.planner.plan import plan

    transformers.logging.set_verbosity_error()  # no warnings about the special tokens of configs that only give sizes
    found = plan(options)
    if options.as_json:
        typer.echo(json.dumps(_as_json(found), indent=2))
    else:
        _show(found)
    if found.mode is None:
        raise typer.Exit(1)


def _gb(size: float) -> str:
    return f"{size / 10**9:.1f}"


def _cells(mode: str, found: ModePlan) -> list[str]:
    persistent, phase = found.persistent, found.peak_phase
    sizes = (persistent.weights, persistent.gradients, persistent.optimizer, persistent.teacher)
    count = f"{found.setup.micro_batch} x {found.accumulation}"
    fits = "yes" if found.fits else "no"
    return [mode, fits, count, *map(_gb, (*sizes, phase.activations, phase.loss)), _gb(found.peak)]


def _show_table(columns: Sequence[str], rows: list[list[str]], title: str) -> None:
    from rich.console import Console

    from sad.report.table import rich_table

    console = Console()
    if console.is_terminal:
        console.print(rich_table(columns, rows, title))
        return
    table = [list(columns), *rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    typer.echo(title)
    for row in table:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths))
        typer.echo("  ".join(["", first.strip().ljust(widths[0]), *others]))


def _show(found: Plan) -> None:
    request, rows = found.request, [_cells(mode, mode_plan) for mode, mode_plan in found.modes.items()]
    for name, shape in (("teacher", found.teacher), ("student", found.student)):
        typer.echo(f"{name}: {getattr(request, name)}, {shape.parameters:,} parameters")
    gpu, usable = _gb(request.gpu_bytes), _gb(found.usable)
    count = f"{request.gpus} x " if request.gpus > 1 else ""
    each = " on each" if request.gpus > 1 else ""
    typer.echo(f"GPU: {count}{gpu} GB, of which {usable} for tensors{each}; batch {request.batch} x {request.seq}")
    _show_table(_COLUMNS, rows, "Memory in GB at the peak of a step")
    caches = [
        [mode, "yes" if mode == "hidden" else "no", str(size.row), f"{size.row / 10**3:.1f}", _gb(size.head)]
        for mode, size in found.caches.items()
    ]
    if caches:
        _show_table(_CACHE_COLUMNS, caches, "Teacher cache on disk, per supervised token")
    for mode, mode_plan in found.modes.items():
        savings = f"; fits with {' and '.join(mode_plan.savings)}" if mode_plan.savings else ""
        peak = f"; peak: {mode_plan.peak_phase.name}"
        typer.echo(f"{mode}: {_DESCRIPTIONS[mode].format(k=request.top_k)}{savings}{peak}")
    for note in found.notes:
        typer.echo(note)
    if found.command:
        typer.echo(f"To run the mode {found.mode}:\n{found.command}")


def _as_json(found: Plan) -> dict[str, Any]:
    request = {field.name: getattr(found.request, field.name) for field in fields(PlanRequest)}
    modes = {}
    for mode, mode_plan in found.modes.items():
        modes[mode] = {
            "fits": mode_plan.fits,
            "micro_batch": mode_plan.setup.micro_batch,
            "gradient_accumulation_steps": mode_plan.accumulation,
            "gradient_checkpointing": mode_plan.setup.checkpointing,
            "optimizer": mode_plan.setup.optimizer,
            "savings": mode_plan.savings,
            "peak_phase": mode_plan.peak_phase.name,
            "bytes": {
                **asdict(mode_plan.persistent),
                "activations": mode_plan.peak_phase.activations,
                "loss": mode_plan.peak_phase.loss,
                "peak": mode_plan.peak,
            },
        }
    return {
        **request,
        "gpu": found.request.gpu_bytes,
        "parameters": {"teacher": found.teacher.parameters, "student": found.student.parameters},
        "usable": found.usable,
        "modes": modes,
        "caches": {mode: asdict(size) for mode, size in found.caches.items()},
        "mode": found.mode,
        "command": found.command,
        "notes": found.notes,
    }
