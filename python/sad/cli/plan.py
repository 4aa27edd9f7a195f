"""`sad plan`: what a training run needs of a GPU's memory, before anything is downloaded or started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sad.planner.plan import Outcome, Plan

_COLUMNS = ("mode", "fits", "micro-batch", "weights", "gradients", "optimizer", "teacher", "activations", "loss", "peak")
_ABOUT = {
    "naive": "both models' logits and PyTorch's KL",
    "linear": "sad.fused_linear_span_kl: supervised rows only, in chunks",
    "cached": "the teacher's top {k} per token from disk, no teacher in memory",
}


def command(
    teacher: Annotated[str, typer.Option(help="Folder with a config.json, or a name such as gpt2-xl.")],
    student: Annotated[str, typer.Option(help="Likewise.")],
    gpu: Annotated[str, typer.Option(help="The GPU's memory: 24GB, 80GiB, 24564MiB.")],
    batch: Annotated[int, typer.Option(help="Sequences per optimizer step.")] = 64,
    seq: Annotated[int, typer.Option(help="Tokens per sequence.")] = 512,
    dtype: Annotated[str, typer.Option(help="bf16 (autocast over float32 weights) or fp32.")] = "bf16",
    optimizer: Annotated[
        str | None, typer.Option(help="adamw, adamw_8bit, adafactor; not given: adamw, in 8 bits where nothing else fits.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option("--gradient-checkpointing/--no-gradient-checkpointing", help="Not given: where nothing else fits."),
    ] = None,
    lora: Annotated[int, typer.Option(help="Rank of adapters on a frozen student; 0 trains all weights.")] = 0,
    lora_target: Annotated[str, typer.Option(help="qv (queries and values) or all (every linear layer).")] = "qv",
    teacher_bits: Annotated[int, typer.Option(help="Of the weights of the teacher's layers: 16, 8, 4.")] = 16,
    supervised_fraction: Annotated[float, typer.Option(help="Share of tokens that are reasoning or action.")] = 0.6,
    top_k: Annotated[int, typer.Option(help="Entries per token in a teacher cache.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, in bytes, instead of a table.")] = False,
) -> None:
    """Say what fits on a GPU: memory by term, the largest micro-batch, and the command to run.

    From the models' configs alone; nothing is downloaded, no GPU is needed. GPT-2, OPT, LLaMA, Qwen2.5 and Qwen3 are
    known by name. The exit code is 1 if neither linear nor cached fits.
    """
    import json

    import transformers

    from sad.planner.plan import Question, gpu_bytes, plan

    transformers.logging.set_verbosity_error()  # remarks on the tokens of configs that nobody is going to use
    question = Question(
        teacher=teacher,
        student=student,
        gpu=gpu_bytes(gpu),
        batch=batch,
        seq=seq,
        dtype=dtype,
        optimizer=optimizer,
        checkpointing=gradient_checkpointing,
        lora=lora,
        lora_target=lora_target,
        teacher_bits=teacher_bits,
        supervised=supervised_fraction,
        top_k=top_k,
    )
    found = plan(question)
    if as_json:
        typer.echo(json.dumps(_plain(found), indent=2))
    else:
        _show(found)
    if found.mode is None:
        raise typer.Exit(1)


def _gb(size: float) -> str:
    return f"{size / 10**9:.1f}"


def _cells(mode: str, outcome: Outcome) -> list[str]:
    stands, moment = outcome.standing, outcome.highest
    sizes = (stands.weights, stands.gradients, stands.optimizer, stands.teacher, moment.activations, moment.loss)
    count = f"{outcome.setup.micro_batch} x {outcome.accumulation}"
    return [mode, "yes" if outcome.fits else "no", count, *map(_gb, sizes), _gb(outcome.peak)]


def _show(found: Plan) -> None:
    from rich.console import Console

    from sad.report.table import rich_table

    question, rows = found.question, [_cells(mode, outcome) for mode, outcome in found.outcomes.items()]
    for name, shape in (("teacher", found.teacher), ("student", found.student)):
        typer.echo(f"{name}: {getattr(question, name)}, {shape.parameters:,} parameters")
    typer.echo(
        f"GPU: {_gb(question.gpu)} GB, of which {_gb(found.usable)} for tensors; batch {question.batch} x {question.seq}"
    )
    title, console = "Memory in GB at the highest moment of a step", Console()
    if console.is_terminal:
        console.print(rich_table(_COLUMNS, rows, title))
    else:
        table = [list(_COLUMNS), *rows]
        widths = [max(map(len, column)) for column in zip(*table)]
        typer.echo(title)
        for row in table:
            first, *others = (cell.rjust(width) for cell, width in zip(row, widths))
            typer.echo("  ".join(["", first.strip().ljust(widths[0]), *others]))
    for mode, outcome in found.outcomes.items():
        chosen = f"; fits with {' and '.join(outcome.levers)}" if outcome.levers else ""
        moment = f"; highest: {outcome.highest.name}"
        typer.echo(f"{mode}: {_ABOUT[mode].format(k=question.top_k)}{chosen}{moment}")
    for note in found.notes:
        typer.echo(note)
    if found.command:
        typer.echo(f"To run it, {found.mode}:\n{found.command}")


def _plain(found: Plan) -> dict[str, Any]:
    from dataclasses import asdict

    outcomes = {}
    for mode, outcome in found.outcomes.items():
        outcomes[mode] = {
            "fits": outcome.fits,
            "micro_batch": outcome.setup.micro_batch,
            "gradient_accumulation_steps": outcome.accumulation,
            "gradient_checkpointing": outcome.setup.checkpointing,
            "optimizer": outcome.setup.optimizer,
            "levers": outcome.levers,
            "highest_moment": outcome.highest.name,
            "bytes": {
                **asdict(outcome.standing),
                "activations": outcome.highest.activations,
                "loss": outcome.highest.loss,
                "peak": outcome.peak,
            },
        }
    return {
        **asdict(found.question),
        "parameters": {"teacher": found.teacher.parameters, "student": found.student.parameters},
        "usable": found.usable,
        "outcomes": outcomes,
        "mode": found.mode,
        "command": found.command,
        "notes": found.notes,
    }
