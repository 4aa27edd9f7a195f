"""`sad tune`: measures the kernels on the GPU of this machine, and writes the fastest choices to a file that they read."""

from __future__ import annotations

from typing import Any

import typer

from sad.cli.flags import takes
from sad.cli.tune_options import TuneOptions


@takes(TuneOptions)
def command(options: TuneOptions) -> None:
    """Measure the kernels on this machine's GPU, and write the fastest choices to a file that they read.

    Each candidate is compared with float64 first, and a wrong one is left out. The exit code is 1 if a kernel was wrong with
    the choices that the package ships, or if nothing was measured in time.
    """
    from rich.console import Console

    from sad.cli import tune_checks
    from sad.files import write_file
    from sadkernels import tuning
    from sadkernels.bench import tune

    device = tune_checks.check_device(options.device)
    found = tune_checks.check_backends(device)
    sizes, dtypes = tune_checks.check_sizes(options)
    index = tuning.index_of(device)
    path = tune_checks.check_out(options.out, index)
    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    say(f"{tuning.gpu(index).name}, driver {tuning.gpu(index).driver}: {' and '.join(found)}, at most {options.seconds:g} s")
    result = tune.tune(
        tune_checks.card(device, options.tokens),
        tune.stages(found, sizes, dtypes),
        seconds=options.seconds,
        report=lambda entry: say(_line(entry)),
    )
    for candidate in result.left_out:
        say(f"left out: {candidate.setting} {candidate.dtype} {_choice(candidate.choice)}: {candidate.reason}")
    if result.not_measured:
        say(f"not measured: {len(result.not_measured)} settings (no time, no memory, or no correct candidate)")
    if not result.entries:
        say(f"Nothing was measured in {options.seconds:g} s, so no file was written. Raise --seconds.")
        raise typer.Exit(1)
    write_file(path, tuning.to_json(tuning.gpu(index), result.entries, tune_checks.about(result)))
    say(f"wrote {path} after {result.seconds:.0f} s")
    if path != tuning.file_for(index):
        say(f"The kernels read it if you set SAD_TUNING={path}.")
    if result.shipped_is_wrong:
        say("A kernel is wrong on this GPU. Run `sad doctor`, use backend='reference', and report this.")
        raise typer.Exit(1)


def _line(entry: Any) -> str:
    size = "all vocabularies" if entry.vocab_size is None else str(entry.vocab_size)
    line = f"{entry.setting:22} {entry.dtype:9} {size:>16}  {entry.ms:8.3f} ms  {_choice(entry.choice)}"
    if entry.choice is None or entry.shipped_ms is None:
        return line
    return f"{line} ({entry.shipped_ms / entry.ms:.2f}x the shipped choice)"


def _choice(choice: Any) -> str:
    return "shipped choice" if choice is None else ", ".join(f"{name} {value}" for name, value in choice.items())
