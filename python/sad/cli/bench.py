"""`sad bench`: the loss against PyTorch and other libraries, on the user's machine."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    quick: Annotated[bool, typer.Option("--quick", help="A few small cases, in seconds.")] = False,
    full: Annotated[bool, typer.Option("--full", help="All sizes that fit memory; hours on a CPU.")] = False,
    device: Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, or cuda:1 and so on.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 in all cases.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="One case of your own: N.")] = None,
    vocab: Annotated[int | None, typer.Option(min=2, help="One case of your own: V.")] = None,
    supervised: Annotated[float | None, typer.Option(help="One case of your own: the fraction of supervised rows.")] = None,
    provider: Annotated[list[str] | None, typer.Option(help="Measure only this one; may be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="New CSV file, written as the run goes.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture drawn from the CSV (needs matplotlib).")] = None,
    from_csv: Annotated[Path | None, typer.Option("--from", help="Show the CSV of an earlier run; measure nothing.")] = None,
) -> None:
    """Measure time, memory and bandwidth of the span KL against PyTorch, Liger-Kernel and TRL.

    Every result is first checked against float64; a provider that is wrong is not timed. The exit code is 1 if one of
    our own was wrong or failed.
    """
    from contextlib import nullcontext

    from rich.console import Console

    from sad.cli import bench_checks
    from sad.report import bench_plot, bench_table
    from sad.report.table import rich_table
    from sadkernels.bench.machine import about
    from sadkernels.bench.measure import QUICK, Effort
    from sadkernels.bench.record import read_csv
    from sadkernels.bench.run import broken, run

    bench_checks.check_plot(plot, from_csv or out)
    console = Console()

    def show(group: list) -> None:
        console.print(rich_table(bench_table.COLUMNS, bench_table.cells(group), str(group[0]["case"])))

    if from_csv is not None:
        found = bench_checks.read(from_csv)
        console.print(bench_table.machine_line(found[0]))
        for case in dict.fromkeys(row["case"] for row in found):
            show([row for row in found if row["case"] == case])
    else:
        where = bench_checks.check_device(device)
        only = bench_checks.check_providers(provider or [])
        cases = bench_checks.check_cases(quick, full, where.type, dtype, rows, vocab, supervised)
        log, found = bench_checks.open_log(out, where), []
        console.print(bench_table.machine_line(about(where)))
        with log or nullcontext():
            for group in run(cases, where, only=only, quick=quick, effort=QUICK if quick else Effort()):
                found += group
                if log is not None:
                    log.write(group)
                if group:
                    show(group)
    for line in bench_table.reasons(found):
        console.print(f"not run: {line}", highlight=False, soft_wrap=True)
    if plot is not None:
        bench_plot.draw(read_csv(from_csv or out), plot)
    if broken(found):
        raise typer.Exit(1)
