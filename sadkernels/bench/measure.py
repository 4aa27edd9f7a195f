"""One case: which providers can run it, which are right, and what the right ones cost."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import torch

from sadkernels.bench import memory, timing
from sadkernels.bench.bandwidth import moved_bytes
from sadkernels.bench.cases import Case
from sadkernels.bench.problem import Problem, Truth, make
from sadkernels.bench.providers import BASELINE, Provider
from sadkernels.bench.record import FAILED, NO_MEMORY, NOT_RUN, OK, WRONG, Row

# What PyTorch itself errs by in the dtype, with room: log-probabilities are rounded before they are subtracted, and from
# hidden states the logits are rounded before that.
TOLERANCE = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 3e-2}
LINEAR_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
_MIB = 1 << 20
# On a CPU, a quick call that follows a large one pays for it: the system, and a virtual machine's host, are busy for a while
# with the gigabytes that were freed. So calls below this many seconds run once untimed in every round.
_QUICK_CALL = 0.25


class Effort(NamedTuple):
    """How long the timing of a case may take: about `seconds`, and between `least` and `most` rounds of all providers."""

    seconds: float = 20.0
    least: int = 5
    most: int = 100


QUICK = Effort(1.0, 3, 30)


def measure(
    case: Case,
    device: torch.device,
    providers: Sequence[Provider],
    copy_bandwidth: float,
    effort: Effort,
    make_problem: Callable[[Case, torch.device], Problem] = make,
) -> list[Row]:
    """One row per provider, in their order; see `record.FIELDS`.

    Args:
        case: What to measure.
        device: Where.
        providers: By whom. `BASELINE` must be among them for ratios.
        copy_bandwidth: Bytes per second of a large copy on this device.
        effort: How long.
        make_problem: Makes the inputs.
    """
    rows = {provider.name: _blank(case, device, provider) for provider in providers}
    able = []
    for provider in providers:
        if reason := provider.missing(case, device) or _too_large(provider.bytes_needed(case) + case.input_bytes, device):
            rows[provider.name] |= {"status": NOT_RUN, "reason": reason}
        else:
            able.append(provider)
    if not able:
        return list(rows.values())

    try:
        problem = make_problem(case, device)
        truth = problem.truth()
    except torch.OutOfMemoryError as error:
        for provider in able:
            rows[provider.name] |= {"status": NO_MEMORY, "reason": f"the inputs: {_one_line(error)}"}
        return list(rows.values())
    clock = timing.clock_for(device)
    right, once = {}, {}
    for provider in able:
        row, run = rows[provider.name], _run(problem, provider)
        row |= _judge(problem, provider, truth)
        if row["status"] == OK:
            once[provider.name] = took = timing.time_in_turns({provider.name: run}, clock, 1)[provider.name][0]
            right[provider.name] = provider, run._replace(twice=device.type == "cpu" and took < _QUICK_CALL)
    if right:
        rounds = int(max(effort.least, min(effort.most, effort.seconds / sum(once.values()))))
        seconds = timing.time_in_turns({name: run for name, (_, run) in right.items()}, clock, rounds)
        ratio = timing.speedups(seconds, BASELINE)
        moved = moved_bytes(case)
        for name, (provider, run) in right.items():
            row, took = rows[name], median(seconds[name])
            row |= {"ms": _short(1e3 * took), "rounds": rounds, "copy_gb_per_s": _short(copy_bandwidth / 1e9)}
            if isinstance(clock, timing.EventClock):
                row["ms_warm"] = _short(1e3 * clock.warm(run, took))
            if name in ratio:
                row["times_pytorch"] = _short(ratio[name])
            if moved is not None:
                row |= {"moved_mb": _short(moved / _MIB), "copy_fraction": _short(moved / took / copy_bandwidth)}
            problem.reset()
            used = memory.usage(functools.partial(provider.loss, problem), problem.backward, device)
            if used.peak is not None:
                row |= {"peak_extra_mb": _mib(used.peak), "retained_mb": _mib(used.retained)}
    return list(rows.values())


def not_run(case: Case, device: torch.device, providers: Sequence[Provider], reason: str) -> list[Row]:
    """The rows of a case that was not tried."""
    return [_blank(case, device, provider) | {"status": NOT_RUN, "reason": reason} for provider in providers]


def _blank(case: Case, device: torch.device, provider: Provider) -> Row:
    hidden = case.hidden or ("", "")
    return {
        "op": case.op,
        "case": case.name,
        "rows": case.rows,
        "vocab": case.vocab,
        "hidden_student": hidden[0],
        "hidden_teacher": hidden[1],
        "dtype": case.dtype,
        "supervised": round(case.supervised, 4),
        "device": device.type,
        "provider": provider.name,
        "status": "",
        "reason": "",
    }


def _too_large(needed: int, device: torch.device) -> str | None:
    """Why not even to try; on a GPU trying is safe."""
    room = memory.available() if device.type == "cpu" else None
    if room is None or needed <= 0.9 * room:
        return None
    return f"would need about {needed / 2**30:.1f} GiB, {room / 2**30:.1f} GiB are free"


def _run(problem: Problem, provider: Provider) -> timing.Run:
    reads_gradient = problem.device.type == "cpu" and not provider.in_place

    def call() -> None:
        for leaf in problem.leaves:
            leaf.grad = None
        problem.backward(provider.loss(problem))
        if reads_gradient:  # a buffer whose pages were never touched is not yet paid for
            for leaf in problem.leaves:
                leaf.grad.sum()

    return timing.Run(problem.reset, call)


def _judge(problem: Problem, provider: Provider, truth: Truth) -> Row:
    """Runs once, on the tensors that will be timed, and compares with the truth; whoever is wrong is not timed."""
    problem.reset()
    try:
        loss = provider.loss(problem)
        problem.backward(loss)
        error = problem.error(loss.detach(), truth)
    except (torch.OutOfMemoryError, MemoryError) as problem_of_size:
        return {"status": NO_MEMORY, "reason": _one_line(problem_of_size)}
    except Exception as failure:  # a peer's failure is a result of the benchmark, whatever it is
        return {"status": FAILED, "reason": f"{type(failure).__name__}: {_one_line(failure)}"}
    bound = (TOLERANCE if problem.case.hidden is None else LINEAR_TOLERANCE)[problem.case.dtype]
    if math.isfinite(error) and error <= bound:
        return {"status": OK, "error": f"{error:.1e}"}
    return {"status": WRONG, "reason": f"errs by {error:.1e}, {bound:.0e} is allowed: not timed", "error": f"{error:.1e}"}


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[0][:200]


def _mib(size: int) -> float:
    return round(size / _MIB, 1)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
