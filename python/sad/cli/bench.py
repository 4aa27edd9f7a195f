"""`sad bench`: measures the losses against PyTorch and other libraries on the user's machine."""

from dataclasses import dataclass
from pathlib import Path

import typer

from sad.cli.flags import takes
from sad.options import option


@dataclass(frozen=True)
class BenchOptions:
    """The options of `sad bench`."""

    quick: bool = option(False, flag="--quick", group="Cases", help="Measure a few small cases, in seconds.")
    full: bool = option(
        False, flag="--full", group="Cases", help="Measure all sizes that fit in memory. This takes hours on a CPU."
    )
    rows: int | None = option(None, group="Cases", help="Measure one case with N rows.")
    vocab: int | None = option(None, group="Cases", help="Measure one case with V vocabulary columns.")
    supervised: float | None = option(None, group="Cases", help="Measure one case with this fraction of supervised rows.")
    dtype: str | None = option(
        None, group="Cases", help="The dtype of all cases: float32, bfloat16 or float16. Default: each case's own dtype."
    )
    device: str = option("auto", help="auto (the GPU if there is one), cpu, cuda or cuda:N.")
    provider: list[str] = option([], help="Measure only this provider. Repeatable.")
    out: Path | None = option(None, group="Results", help="Write this new CSV file, case by case.")
    plot: Path | None = option(None, group="Results", help="Draw this plot from the CSV file. It needs matplotlib.")
    from_csv: Path | None = option(
        None, flag="--from", group="Results", help="Show the CSV file of an earlier run and measure nothing."
    )


@takes(BenchOptions)
def command(options: BenchOptions) -> None:
    """Measure time, memory and bandwidth of the span KL against PyTorch, Liger-Kernel and TRL.

    Each provider's result is compared with float64 first, and a wrong provider is not timed. The exit code is 1 if a
    backend of sad was wrong or failed.
    """
    from contextlib import nullcontext

    from rich.console import Console

    from sad.cli import bench_checks
    from sad.report import bench
    from sad.report.table import rich_table
    from sadkernels.bench.measure import QUICK_TIMING, TimingConfig, failed_backends, measure_cases
    from sadkernels.bench.record import machine_info, read_csv

    csv = options.from_csv or options.out
    bench_checks.check_plot(options.plot, csv)
    console = Console()

    def show(group: list) -> None:
        console.print(rich_table(bench.COLUMNS, bench.table_rows(group), str(group[0]["case"])))

    if options.from_csv is not None:
        found = bench_checks.read(options.from_csv)
        console.print(bench.machine_line(found[0]))
        for case in dict.fromkeys(row["case"] for row in found):
            show([row for row in found if row["case"] == case])
    else:
        device = bench_checks.check_device(options.device)
        only = bench_checks.check_providers(options.provider)
        cases = bench_checks.check_cases(options, device.type)
        log, found = bench_checks.open_log(options.out, device), []
        config = QUICK_TIMING if options.quick else TimingConfig()
        console.print(bench.machine_line(machine_info(device)))
        with log or nullcontext():
            for group in measure_cases(cases, device, only=only, quick=options.quick, config=config):
                found += group
                if log is not None:
                    log.write(group)
                if group:
                    show(group)
    for line in bench.reasons(found):
        console.print(f"not run: {line}", highlight=False, soft_wrap=True)
    if options.plot is not None:
        bench.draw(read_csv(csv), options.plot)
    if failed_backends(found):
        raise typer.Exit(1)
