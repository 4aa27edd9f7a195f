"""`sad bench`: measures the losses against PyTorch and other libraries on the user's machine."""

import typer

from sad.cli.bench_options import BenchOptions
from sad.cli.flags import takes


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
            for rows in measure_cases(cases, device, only=only, quick=options.quick, config=config):
                group = []
                for row in rows:
                    group.append(row)
                    if log is not None:
                        log.write([row])
                found += group
                if group:
                    show(group)
    for line in bench.reasons(found):
        console.print(f"not run: {line}", highlight=False, soft_wrap=True)
    if options.plot is not None:
        bench.draw(read_csv(csv), options.plot)
    if failed_backends(found):
        raise typer.Exit(1)
