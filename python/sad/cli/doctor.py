"""`sad doctor`: shows the installed packages and the hardware, and tests the backends that run here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import typer

from sad.cli.flags import takes
from sad.options import option


@dataclass(frozen=True)
class DoctorOptions:
    """The options of `sad doctor`."""

    json: bool = option(False, flag="--json", help="Print one JSON object instead of tables.")
    test: bool = option(True, help="Compare every backend with float64, in seconds.")


@takes(DoctorOptions)
def command(options: DoctorOptions) -> None:
    """Show the installed packages and the hardware, and test the backends that run here.

    Each op of each backend is compared with the reference in float64, for about 5 seconds at most. The exit code is 1 if a
    result is wrong. A backend that cannot run here is not an error.
    """
    import json

    from rich.console import Console

    from sad.cli import doctor_facts

    facts: dict[str, Any] = {
        "packages": doctor_facts.packages(),
        "hardware": doctor_facts.hardware(),
        "builds": doctor_facts.builds(),
    }
    console = Console()
    if not options.json:
        _show(console, "Packages", _packages(facts["packages"]))
        _show(console, "This machine", _machine(facts["hardware"]))
        _show(console, "Compiled extensions", _builds(facts["builds"]))
    rows = list(doctor_facts.checked_backends(options.test))
    healthy = doctor_facts.healthy(rows)
    if options.json:
        typer.echo(json.dumps({**facts, "backends": rows, "healthy": healthy}, indent=2))
    else:
        _show(console, "Backends", map(_backend, rows))
        for row in rows:
            for line in (row["self_test"] or {}).get("failures", ()):
                typer.echo(f"{row['op']} on {row['backend']}: {line}")
        typer.echo(_verdict(rows, healthy, options.test))
    if not healthy:
        raise typer.Exit(1)


def _show(console: Any, title: str, rows: Iterable[tuple[str, ...]]) -> None:
    """Prints a table without a header on a terminal, and plain lines elsewhere."""
    rows = list(rows)
    if console.is_terminal:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
        for index in range(len(rows[0])):
            table.add_column(no_wrap=index < len(rows[0]) - 1)
        for row in rows:
            table.add_row(*map(Text, row))  # Text, because brackets in a message are not markup
        console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(*rows)]
    typer.echo(title)
    for row in rows:
        typer.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    typer.echo("")


def _packages(found: dict[str, dict[str, str | None]]) -> Iterable[tuple[str, str, str]]:
    for name, about in found.items():
        use = about.get("for")
        yield name, about["version"] or "not installed", f"optional: {use}" if use else ""


def _machine(about: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "system", about["system"]
    yield "processor", f"{about['processor']}, {about['threads']} threads"
    yield "CUDA of PyTorch", about["torch_cuda"] or "none: this PyTorch is built for the CPU"
    for index, gpu in enumerate(about["gpus"]):
        yield f"GPU {index}", f"{gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_gib']:g} GiB"
        yield f"tuning of GPU {index}", gpu["tuning"]
    if not about["gpus"]:
        yield "GPUs", "PyTorch sees none"
    for line in about["nvidia_smi"]:
        yield "nvidia-smi", f"{line} (name, driver)"


def _builds(about: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "C++ compiler", about["compiler"] or "none found"
    yield "nvcc", about["nvcc"] or "none found"
    sets = about["cpu_instruction_sets"]
    yield "CPU extension", "not built" if sets is None else f"instruction sets, best first: {', '.join(sets)}"
    architectures = about["cuda_architectures"]
    if architectures is None:
        yield "CUDA extension", "not built"
    elif about["cuda_emulated"]:
        yield "CUDA extension", "emulated on the CPU: SAD_CUDA_EMULATED is set"
    else:
        driver = f"driver for {about['cuda_driver']}" if about["cuda_driver"] else "no driver"
        yield "CUDA extension", f"architectures {', '.join(architectures)}; runtime {about['cuda_runtime']}, {driver}"


def _backend(row: dict[str, Any]) -> tuple[str, str, str, str]:
    outcome, state, about = row["self_test"], "runs", f"on {row['device']}"
    if row["why_not"]:
        state, about = "cannot run here", row["why_not"]
    elif outcome:
        state = "correct" if outcome["passed"] else "WRONG"
        failed = len(outcome["failures"])
        about += f": {outcome['ran'] - failed} of {outcome['ran']} cases agree with float64, {outcome['seconds']:.1f} s"
        if outcome["ran"] < outcome["cases"]:
            about += f"; {outcome['cases'] - outcome['ran']} cases not run, no time left"
    return row["op"], row["backend"], state, about


def _verdict(rows: list[dict[str, Any]], healthy: bool, test: bool) -> str:
    count = len([row for row in rows if row["why_not"] is None])
    if not test:
        return f"{count} of {len(rows)} op-backend pairs can run here; no test was run."
    if healthy:
        return f"All {count} op-backend pairs that can run here are correct."
    return "A backend is wrong. Pass another one by name (backend='reference' is slow but safe), and report this."
