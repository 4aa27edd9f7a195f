"""Checks the options of `sad bench` before any measurement starts."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from sad.cli.bench_options import BenchOptions
from sad.errors import InputError
from sadkernels.bench import cases
from sadkernels.bench.cases import Case
from sadkernels.bench.providers import NAMES
from sadkernels.bench.record import CsvLog, read_csv

_DTYPES = ("float32", "bfloat16", "float16")
_PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def check_device(name: str) -> torch.device:
    """Returns the device called `name`; "auto" is the GPU if there is one.

    Raises:
        InputError: The name is not a device, or PyTorch does not see this GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        remedy = "Remove --device to use the GPU if there is one."
        raise InputError("--device", "auto, cpu, cuda, or cuda:N", repr(name), remedy)
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        got = f"{name!r}; PyTorch {torch.__version__} sees {torch.cuda.device_count()}"
        raise InputError("--device", "a GPU that PyTorch sees", got, "Use --device cpu, or install PyTorch for your GPU.")
    return torch.device(name)


def check_providers(names: Sequence[str]) -> list[str]:
    """Returns the names.

    Raises:
        InputError: A name is unknown.
    """
    for name in names:
        if name not in NAMES:
            raise InputError("--provider", f"one of {', '.join(NAMES)}", repr(name), "Remove --provider to measure all.")
    return list(names)


def check_cases(options: BenchOptions, device_type: str) -> list[Case]:
    """Returns the cases to measure: a table of cases, or one case whose missing sizes are those of the first CPU case.

    Raises:
        InputError: Options contradict each other, or a size, dtype or fraction is invalid.
    """
    sizes = {"--rows": options.rows, "--vocab": options.vocab, "--supervised": options.supervised}
    one_case = any(value is not None for value in sizes.values())
    if options.quick and options.full:
        raise InputError("--full", "--quick or --full", "both", "Remove one of them.")
    if options.full and one_case:
        raise InputError("--full", "no size option", "--rows, --vocab or --supervised", "Remove --full or the size options.")
    if options.dtype is not None and options.dtype not in _DTYPES:
        remedy = "Remove --dtype to use each case's own."
        raise InputError("--dtype", f"one of {', '.join(_DTYPES)}", repr(options.dtype), remedy)
    for flag, least in (("--rows", 1), ("--vocab", 2)):
        if sizes[flag] is not None and sizes[flag] < least:
            raise InputError(flag, f"an integer of at least {least}", str(sizes[flag]), "Raise it, or remove the option.")
    if not one_case:
        size = "quick" if options.quick else "full" if options.full else "default"
        return cases.choose_cases(size, device_type, options.dtype)
    first = cases.CPU[0]
    supervised = first.supervised if options.supervised is None else options.supervised
    case = Case(options.rows or first.rows, options.vocab or first.vocab, options.dtype or first.dtype, supervised)
    if not (0 < supervised <= 1 and case.supervised_rows):
        expected = "a fraction in (0, 1] that supervises at least one row"
        raise InputError("--supervised", expected, f"{supervised:g} of {case.rows} rows", "Raise it, or raise --rows.")
    return [case]


def check_plot(plot: Path | None, csv: Path | None) -> None:
    """Checks that the plot can be drawn after the measurement.

    Raises:
        InputError: There is no CSV file or no matplotlib, or the suffix or the folder is invalid.
    """
    if plot is None:
        return
    if csv is None:
        raise InputError("--plot", "--out FILE.csv as well", "none", "The plot is drawn from the CSV file: add --out.")
    if plot.suffix not in _PLOT_SUFFIXES:
        raise InputError("--plot", f"a file that ends in {', '.join(_PLOT_SUFFIXES)}", repr(str(plot)), "Name a .png file.")
    if importlib.util.find_spec("matplotlib") is None:
        remedy = "Run `pip install matplotlib`, or draw the plot later with --from."
        raise InputError("--plot", "matplotlib", "none installed", remedy)
    folder = plot.resolve().parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise InputError("--plot", "a file in a writable folder", repr(str(plot)), "Create the folder first.")


def open_log(out: Path | None, device: torch.device) -> CsvLog | None:
    """Opens the new CSV file, or returns None if there is none to write.

    Raises:
        InputError: The file exists or cannot be written.
    """
    if out is None:
        return None
    if out.exists():
        raise InputError("--out", "a new file", f"{str(out)!r}, which exists", "Choose another name, or remove the file.")
    try:
        return CsvLog(out, str(device))
    except OSError as error:
        got = f"{str(out)!r} ({error.strerror})"
        raise InputError("--out", "a writable file", got, "Choose another folder.") from None


def read(path: Path) -> list[dict[str, str]]:
    """Reads the rows of an earlier run.

    Raises:
        InputError: The file is missing, is not a benchmark's CSV file, or has no rows.
    """
    try:
        rows = read_csv(path)
    except (OSError, ValueError) as error:
        got, remedy = f"{str(path)!r} ({error})", "Name such a file, or remove --from."
        raise InputError("--from", "a CSV file that `sad bench --out` wrote", got, remedy) from None
    if not rows:
        got, remedy = f"{str(path)!r}, which has none", "Let the run complete a case first."
        raise InputError("--from", "a CSV file with results", got, remedy)
    return rows
