"""Checks the options of `sad tune` before any measurement starts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sad.cli import bench_checks
from sad.cli.tune_options import TuneOptions
from sad.errors import InputError
from sad.files import check_new_file
from sadkernels import backends, tuning
from sadkernels.bench import tune, tune_gpu

card: Callable[[torch.device, int], tune.Card] = tune_gpu.RealCard  # tests replace it by a simulated one
_LARGEST_VOCAB = 1 << 24


def check_device(name: str) -> torch.device:
    """Returns the GPU called `name`.

    Raises:
        InputError: The name is not that of a GPU, or PyTorch sees no such GPU.
    """
    if name.partition(":")[0] != "cuda":
        remedy = "Only the kernels of GPUs have choices to measure; the `cpu` backend needs no tuning."
        raise InputError("--device", "cuda or cuda:N", repr(name), remedy)
    if not torch.cuda.is_available():
        got = f"none: PyTorch {torch.__version__} sees no GPU"
        remedy = "Run `sad tune` on the machine that trains; `sad doctor` shows what PyTorch sees."
        raise InputError("--device", "a GPU", got, remedy)
    return bench_checks.check_device(name)


def check_backends(device: torch.device) -> list[str]:
    """Returns the backends that can run on the GPU.

    Raises:
        InputError: There is none.
    """
    found = tune_gpu.runnable(device)
    if not found:
        reasons = [f"{name}: {backends.why_not(name, 'span_kl', device)}" for name in ("triton", "cuda")]
        raise InputError("--device", "a GPU on which a backend can run", "; ".join(reasons), "Install what is missing.")
    return found


def check_sizes(options: TuneOptions) -> tuple[list[int], list[str]]:
    """Returns the vocabularies and dtypes to measure.

    Raises:
        InputError: A size, a dtype or the time limit is invalid.
    """
    for size in options.vocab_size:
        if not 2 <= size <= _LARGEST_VOCAB:
            remedy = "Pass the columns of your model's logits, such as 151936."
            raise InputError("--vocab-size", f"2 to {_LARGEST_VOCAB}", str(size), remedy)
    for dtype in options.dtype:
        if dtype not in tuning.DTYPES:
            raise InputError("--dtype", f"one of {', '.join(tuning.DTYPES)}", repr(dtype), "Remove --dtype for the default.")
    if options.tokens < 1:
        raise InputError("--tokens", "at least 1", str(options.tokens), "Pass the tokens of a batch, such as 4096.")
    if not (math.isfinite(options.seconds) and options.seconds > 0):
        raise InputError("--seconds", "a number above 0", f"{options.seconds:g}", "Remove --seconds for 50.")
    return options.vocab_size or list(tune.VOCAB_SIZES), options.dtype or list(tune.DTYPES)


def check_out(out: Path | None, index: int) -> Path:
    """Returns the file to write. An earlier file is replaced.

    Raises:
        InputError: It cannot be written.
    """
    path = tuning.file_for(index) if out is None else out
    if not path.is_file():
        check_new_file("--out", path)
    elif not os.access(path.parent, os.W_OK):
        raise InputError("--out", "a writable folder", repr(str(path.parent)), "Choose another folder with --out.")
    return path


def about(result: tune.Tuned) -> dict[str, Any]:
    """Returns the facts about a measurement that the file shows to its reader."""
    return {
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(result.seconds, 1),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "left_out": [candidate._asdict() for candidate in result.left_out],
        "not_measured": [stage._asdict() for stage in result.not_measured],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
