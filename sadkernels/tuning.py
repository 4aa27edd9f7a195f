"""The choices that `sad tune` measured on a GPU, as the launch plans and `backend="auto"` read them.

A plan asks `choice(setting, device, columns, *dtypes)`. The answer is one of `CANDIDATES[setting]`, or None: then the plan
follows the table that the package ships. The choices are in one small JSON file per GPU, driver and version of the package.
It is read once per process and GPU, and never inside a compiled graph: the plans run inside the custom ops.

A choice changes how the rows are distributed over the GPU, so results change by rounding at most. One file always gives the
same choice, and so the same bits. Every value of a file is compared with `CANDIDATES`; nothing in it is executed.

SAD_TUNING=off    use no file
SAD_TUNING=PATH   use this file and refuse it, with an error, if it is not for this GPU
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

FORMAT = 1
RANGE = 1.25  # a choice holds for vocabularies up to this factor larger or smaller than the measured one
Choice = Mapping[str, Any]


def _grids(*tiles: str) -> tuple[Choice, ...]:
    return tuple({"tile": tile, "share": share} for tile in tiles for share in (1.0, 0.75, 0.5))


_STRATEGIES: tuple[Choice, ...] = (
    *({"strategy": "resident", "cluster": cluster} for cluster in (1, 2, 4, 8)),
    *({"strategy": "streamed", "share": share} for share in (1.0, 0.75, 0.5)),
)
_WAVES: tuple[Choice, ...] = tuple({"waves": waves} for waves in (0, 1, 2))
_BACKENDS: tuple[Choice, ...] = ({"backend": "triton"}, {"backend": "cuda"})  # the shipped order

# By setting: everything that the kernels accept. `share`: the programs or blocks, as a share of those that run at the same
# time. `waves`: how often the slices of a few rows fill the GPU, 0 if rows stay whole. The tiles are those of
# `sadkernels/triton/tiles.py`, the strategies and clusters those of `csrc/cuda/launch_plan.h`. Chunks are never larger than
# the shipped ones, so that a run needs no more memory than `sad plan` computes.
CANDIDATES: dict[str, tuple[Choice, ...]] = {
    "triton.lean": _grids("short", "pair", "crowded"),  # whole rows, kernels with at most 64 registers per thread
    "triton.roomy": _grids("short", "roomy"),  # whole rows, the other kernels
    "triton.one_pass": _grids("short", "stream"),  # rows that are read once
    "triton.topk": _grids("short", "roomy"),
    "triton.slices": _WAVES,
    "cuda.lean": _STRATEGIES,  # forward KL
    "cuda.roomy": _STRATEGIES,  # reverse KL and JSD
    "cuda.slices": _WAVES,
    "backend.span_kl": _BACKENDS,
    "backend.topk_span_kl": _BACKENDS,
    "linear.chunk": tuple({"rows": rows} for rows in (512, 1024, 2048)),  # supervised rows per chunk
}
DTYPES = ("float32", "bfloat16", "float16")


class Gpu(NamedTuple):
    """What a file must agree on to be used."""

    name: str
    compute_capability: str
    multiprocessors: int
    driver: str
    sad: str


class Entry(NamedTuple):
    """The result of one measurement.

    Args:
        setting: A key of `CANDIDATES`.
        dtype: Name of the dtype of student and teacher.
        vocab_size: Vocabulary columns; None for the settings "backend.*", which hold for all.
        choice: One of the candidates; None if the shipped table is as fast.
        ms: Median time of the choice, milliseconds.
        shipped_ms: Median time of what the package ships, milliseconds; None if that was wrong and is left out.
    """

    setting: str
    dtype: str
    vocab_size: int | None
    choice: Choice | None
    ms: float
    shipped_ms: float | None


class TuningFileError(ValueError):
    """A tuning file cannot be used; the message names the remedy."""

    def __init__(self, where: object, expected: str, got: str) -> None:
        remedy = "Run `sad tune` to measure this GPU again, or set SAD_TUNING=off."
        super().__init__(f"{where}: expected {expected}, got {got}. {remedy}")


def choice(setting: str, device: torch.device, columns: int | None, *dtypes: torch.dtype) -> Choice | None:
    """Returns the measured choice for a call, or None for the shipped table.

    Args:
        setting: A key of `CANDIDATES`; None is returned for any other.
        device: The device of the tensors.
        columns: Vocabulary columns of the call; None for the settings "backend.*".
        *dtypes: The dtypes of student and teacher. Only calls with one dtype are measured.

    Raises:
        TuningFileError: SAD_TUNING names a file that is damaged or not for this GPU.
    """
    if _forced is not None:
        return _forced.get(setting)
    if device.type != "cuda" or (device.index is None and not torch.cuda.is_available()):
        return None
    return _measured(index_of(device), setting, columns, dtypes)


_forced: Mapping[str, Choice] | None = None  # for all threads: a backward pass runs in a thread of its own


@contextlib.contextmanager
def forced(choices: Mapping[str, Choice]) -> Iterator[None]:
    """Within the context, plans on any device follow these choices by setting, and the shipped tables for other settings."""
    global _forced
    before, _forced = _forced, choices
    try:
        yield
    finally:
        _forced = before


def reload() -> None:
    """Forgets what was read, so that the next call reads SAD_TUNING and the file again."""
    for cached in (_measured, _table, gpu):
        cached.cache_clear()


@functools.cache
def _measured(index: int, setting: str, columns: int | None, dtypes: tuple[torch.dtype, ...]) -> Choice | None:
    if len(set(dtypes)) != 1:
        return None
    found = _table(index).get((setting, str(dtypes[0]).removeprefix("torch.")), {})
    if columns is None or not found:
        return found.get(None)
    nearest = min(found, key=lambda measured: (max(measured, columns) / min(measured, columns), measured))
    return found[nearest] if max(nearest, columns) <= RANGE * min(nearest, columns) else None


Table = dict[tuple[str, str], dict[int | None, Choice | None]]


@functools.cache
def _table(index: int) -> Table:
    """Returns the choices for a GPU by setting and dtype, then by vocabulary columns."""
    wanted = os.environ.get("SAD_TUNING", "")
    if wanted == "off" or not torch.cuda.is_available():
        return {}
    path = file_for(index)
    if wanted:
        return read(path, gpu(index))
    if not path.exists():
        return {}
    try:
        return read(path, gpu(index))
    except TuningFileError as error:
        warnings.warn(f"The tuning file is ignored. {error}", RuntimeWarning, stacklevel=2)
        return {}


def status(index: int) -> str:
    """Returns in one line which choices a GPU follows, with the remedy if it follows no file."""
    if os.environ.get("SAD_TUNING") == "off":
        return "off: SAD_TUNING=off"
    path = file_for(index)
    if not path.exists() and not os.environ.get("SAD_TUNING"):
        return "none; `sad tune` measures this GPU in about a minute"
    try:
        read(path, gpu(index))
    except TuningFileError as error:
        return f"not used. {error}"
    return str(path)


# --- files ---


def file_for(index: int) -> Path:
    """Returns the path of a GPU's file: that in SAD_TUNING, or one in the user's cache folder."""
    wanted = os.environ.get("SAD_TUNING", "")
    if wanted not in ("", "off"):
        return Path(wanted).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache"))
    card = gpu(index)
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "-", part) for part in (card.name, card.driver, card.sad))
    return folder / "sad" / "tuning" / f"{name}.json"


@functools.cache
def gpu(index: int) -> Gpu:
    """Returns what identifies a GPU that PyTorch sees, with its driver and the version of this package."""
    card = torch.cuda.get_device_properties(index)
    capability = f"{card.major}.{card.minor}"
    return Gpu(card.name, capability, card.multi_processor_count, _driver(), _version())


def index_of(device: torch.device) -> int:
    """Returns the number of a GPU; `cuda` without a number is the current one."""
    return torch.cuda.current_device() if device.index is None else device.index


def to_json(card: Gpu, entries: list[Entry], about: Mapping[str, Any]) -> str:
    """Returns the text of a file: one line per entry.

    Args:
        card: The GPU.
        entries: The results, at most one per setting, dtype and vocabulary.
        about: Further facts for the reader, such as the date. Reading ignores them.
    """
    head = {"format": FORMAT, "gpu": card._asdict(), **about}
    lines = ",\n    ".join(json.dumps(entry._asdict()) for entry in entries)
    return f'{json.dumps(head, indent=2)[:-2]},\n  "choices": [\n    {lines}\n  ]\n}}\n'


def read(path: Path, card: Gpu) -> Table:
    """Reads a file for a GPU.

    Raises:
        TuningFileError: The file cannot be read, is damaged, or is for another GPU, driver or version.
    """
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TuningFileError(path, "a file that `sad tune` wrote", f"{type(error).__name__}: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("choices"), list):
        raise TuningFileError(path, f'a JSON object with "format": {FORMAT} and "choices"', _shown(content))
    if content.get("gpu") != card._asdict():
        raise TuningFileError(path, f"a file for {_shown(card._asdict())}", _shown(content.get("gpu")))
    table: Table = {}
    for number, entry in enumerate(content["choices"], start=1):
        setting, dtype, vocab_size, chosen = _checked(entry, f"{path}, choice {number}")
        found = table.setdefault((setting, dtype), {})
        if vocab_size in found:
            raise TuningFileError(f"{path}, choice {number}", "one choice per setting, dtype and vocab_size", _shown(entry))
        found[vocab_size] = chosen
    return table


def _checked(entry: Any, where: str) -> tuple[str, str, int | None, Choice | None]:
    """Returns the parts of an entry that plans use. The choice is the candidate itself, not the parsed value."""
    if not isinstance(entry, dict) or not {"setting", "dtype", "vocab_size", "choice"} <= set(entry):
        raise TuningFileError(where, "setting, dtype, vocab_size and choice", _shown(entry))
    setting, dtype, vocab_size, chosen = (entry[name] for name in ("setting", "dtype", "vocab_size", "choice"))
    if not isinstance(setting, str) or setting not in CANDIDATES:
        raise TuningFileError(where, f"a setting of {', '.join(CANDIDATES)}", _shown(setting))
    if dtype not in DTYPES:
        raise TuningFileError(where, f"a dtype of {', '.join(DTYPES)}", _shown(dtype))
    if setting.startswith("backend."):
        if vocab_size is not None:
            raise TuningFileError(where, "vocab_size null for a backend", _shown(vocab_size))
    elif type(vocab_size) is not int or not 2 <= vocab_size < 2**31:
        raise TuningFileError(where, "a vocab_size of 2 to 2^31 - 1", _shown(vocab_size))
    if chosen is None:
        return setting, dtype, vocab_size, None
    for candidate in CANDIDATES[setting]:
        if _shown(candidate) == _shown(chosen):
            return setting, dtype, vocab_size, candidate
    accepted = ", ".join(map(_shown, CANDIDATES[setting]))
    raise TuningFileError(where, f"one of the choices {accepted}", _shown(chosen))


def _shown(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _version() -> str:
    try:
        return importlib.metadata.version("structured-agent-distillation")
    except importlib.metadata.PackageNotFoundError:
        return "source"


def _driver() -> str:
    """Returns the version of the GPU driver, or of the API that it supports if the system does not tell the driver's."""
    if torch.version.hip is not None:
        return f"hip {torch.version.hip}"
    try:
        found = re.search(r"Kernel Module[^\n]*?\s(\d+\.\d[\d.]*)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        found = None
    return found[1] if found else f"cuda {getattr(torch._C, '_cuda_getDriverVersion', int)()}"
