"""What `sad bench` accepts: its arguments, checked before minutes are spent."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from sad.errors import InputError
from sadkernels.bench import cases
from sadkernels.bench.cases import Case
from sadkernels.bench.providers import NAMES
from sadkernels.bench.record import CsvLog, read_csv

_DTYPES = ("float32", "bfloat16", "float16")
_PICTURES = (".png", ".svg", ".pdf")


def check_device(name: str) -> torch.device:
    """The device called `name`; "auto" is a GPU if there is one.

    Raises:
        InputError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise InputError("--device", "auto, cpu, cuda, or cuda:N", repr(name), "Leave it out to take a GPU if there is one.")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        got = f"{name!r}; PyTorch {torch.__version__} sees {torch.cuda.device_count()}"
        raise InputError("--device", "a GPU that PyTorch sees", got, "Use --device cpu, or install PyTorch for your GPU.")
    return torch.device(name)


def check_providers(names: Sequence[str]) -> list[str]:
    """The names, if all exist.

    Raises:
        InputError: One is unknown.
    """
    for name in names:
        if name not in NAMES:
            raise InputError("--provider", f"one of {', '.join(NAMES)}", repr(name), "Leave it out to measure all.")
    return list(names)


def check_cases(
    quick: bool,
    full: bool,
    device_type: str,
    dtype: str | None,
    rows: int | None,
    vocab: int | None,
    supervised: float | None,
) -> list[Case]:
    """The cases asked for: a table of them, or one of the user's own, whose missing sizes are the headline case's.

    Raises:
        InputError: Options contradict each other, or no such dtype or fraction exists.
    """
    own = [value is not None for value in (rows, vocab, supervised)]
    if quick and full:
        raise InputError("--full", "--quick or --full", "both", "Leave one of them out.")
    if full and any(own):
        raise InputError("--full", "no sizes beside it", "--rows, --vocab or --supervised", "Leave --full or the sizes out.")
    if dtype is not None and dtype not in _DTYPES:
        raise InputError("--dtype", f"one of {', '.join(_DTYPES)}", repr(dtype), "Leave it out for each case's own.")
    if any(own):
        headline = cases.CPU[0]
        case = Case(rows or headline.rows, vocab or headline.vocab, dtype or headline.dtype, headline.supervised)
        case = case if supervised is None else case._replace(supervised=supervised)
        if not (0 < case.supervised <= 1 and case.supervised_rows):
            got = f"{case.supervised:g} of {case.rows} rows"
            raise InputError("--supervised", "a fraction in (0, 1] that leaves a row", got, "Raise it, or --rows.")
        return [case]
    return cases.choose("quick" if quick else "full" if full else "default", device_type, dtype)


def check_plot(plot: Path | None, csv: Path | None) -> None:
    """Refuses a picture that could not be drawn in the end.

    Raises:
        InputError: There is no CSV to draw it from, no matplotlib, no such kind of picture, or no such folder.
    """
    if plot is None:
        return
    if csv is None:
        raise InputError("--plot", "--out FILE.csv beside it", "none", "Pictures are drawn from the CSV: name one.")
    if plot.suffix not in _PICTURES:
        raise InputError("--plot", f"a file that ends in {', '.join(_PICTURES)}", repr(str(plot)), "Name a .png file.")
    if importlib.util.find_spec("matplotlib") is None:
        remedy = "Run `pip install matplotlib`; a picture can be drawn later with --from."
        raise InputError("--plot", "matplotlib", "none installed", remedy)
    folder = plot.resolve().parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise InputError("--plot", "a file in a folder that can be written", repr(str(plot)), "Make the folder first.")


def open_log(out: Path | None, device: torch.device) -> CsvLog | None:
    """The CSV to write to, begun.

    Raises:
        InputError: It exists, or cannot be written.
    """
    if out is None:
        return None
    if out.exists():
        raise InputError("--out", "a new file", f"{str(out)!r}, which exists", "Choose another name, or remove it.")
    try:
        return CsvLog(out, str(device))
    except OSError as error:
        got = f"{str(out)!r} ({error.strerror})"
        raise InputError("--out", "a file that can be written", got, "Choose another folder.") from None


def read(path: Path) -> list[dict[str, str]]:
    """The rows of an earlier run.

    Raises:
        InputError: It is not there, or is no such CSV, or holds no row.
    """
    try:
        rows = read_csv(path)
    except (OSError, ValueError) as error:
        got = f"{str(path)!r} ({error})"
        raise InputError("--from", "a CSV that `sad bench --out` wrote", got, "Name one, or leave --from out.") from None
    if not rows:
        raise InputError(
            "--from", "a CSV with results", f"{str(path)!r}, which has none", "Let the run finish a case first."
        )
    return rows
