"""Measures cases: which providers can run each case, which are correct, and the time and memory of the correct ones."""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

import torch

from sadkernels.bench.cases import Case
from sadkernels.bench.memory import available_bytes, measure_memory
from sadkernels.bench.problem import Problem, Reference, make_problem
from sadkernels.bench.providers import BASELINE, PROVIDERS, Provider
from sadkernels.bench.record import FAILED, NO_MEMORY, NOT_RUN, OK, WRONG, Row
from sadkernels.bench.timing import EventClock, TimedCall, WallClock, clock_for, copy_bandwidth, speedups, time_round_robin

# The error of PyTorch itself in the dtype, with a margin. It rounds log-probabilities before it subtracts them, and from
# hidden states it rounds the logits before that.
TOLERANCE = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 3e-2}
LINEAR_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
_MIB = 1 << 20
# A call below this many seconds on a CPU runs once untimed in every round. Otherwise it pays for the previous call: the
# system, and the host of a virtual machine, are busy for a while after gigabytes were freed.
_SHORT_CALL = 0.25


class TimingConfig(NamedTuple):
    """How long the timing of one case takes.

    Attributes:
        seconds: Approximate time of all rounds.
        min_rounds: Least number of rounds, even if they take longer.
        max_rounds: Largest number of rounds.
    """

    seconds: float = 20.0
    min_rounds: int = 5
    max_rounds: int = 100


QUICK_TIMING = TimingConfig(1.0, 3, 30)


def measure_cases(
    cases: Iterable[Case],
    device: torch.device,
    *,
    only: Sequence[str] = (),
    quick: bool = False,
    config: TimingConfig | None = None,
    budget: float | None = None,
) -> Iterator[list[Row]]:
    """Measures the cases in order and yields the rows of each case as soon as it is complete.

    Args:
        cases: The cases.
        device: The device.
        only: Names of the providers to measure. Empty: all of them.
        quick: Whether to skip the slow providers that `only` does not name.
        config: The timing of one case. Default: `TimingConfig()`.
        budget: Seconds after which no further case starts. The remaining cases are reported as not run.
    """
    if device.index is not None:
        torch.cuda.set_device(device)  # kernels are launched on the current device
    begin, bandwidth = time.monotonic(), None
    for case in cases:
        chosen = [provider for provider in PROVIDERS[case.op] if not only or provider.name in only]
        if budget is not None and time.monotonic() - begin > budget:
            yield _not_run(case, device, chosen, f"not started within the budget of {budget:g} seconds")
            continue
        bandwidth = bandwidth or copy_bandwidth(device)
        skipped = [provider for provider in chosen if quick and provider.slow and provider.name not in only]
        measured = [provider for provider in chosen if provider not in skipped]
        rows = measure_case(case, device, measured, bandwidth, config or TimingConfig())
        for provider in skipped:
            rows += _not_run(case, device, [provider], provider.slow)
        order = {provider.name: place for place, provider in enumerate(chosen)}
        yield sorted(rows, key=lambda row: order[row["provider"]])
        gc.collect()  # once per case, because it takes a large part of a second
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measure_case(
    case: Case,
    device: torch.device,
    providers: Sequence[Provider],
    copy_bytes_per_second: float,
    config: TimingConfig,
    make_problem: Callable[[Case, torch.device], Problem] = make_problem,
) -> list[Row]:
    """Measures one case and returns one row per provider, in their order; see `record.FIELDS`.

    Args:
        case: The case.
        device: The device.
        providers: The providers. Speed-ups need `BASELINE` among them.
        copy_bytes_per_second: The device's copy bandwidth.
        config: The timing.
        make_problem: Makes the inputs.
    """
    rows = {provider.name: _blank(case, device, provider) for provider in providers}
    runnable = []
    for provider in providers:
        needed = provider.bytes_needed(case) + case.input_bytes
        if reason := provider.why_not(case, device) or _too_large(needed, device):
            rows[provider.name] |= {"status": NOT_RUN, "reason": reason}
        else:
            runnable.append(provider)
    if not runnable:
        return list(rows.values())

    try:
        problem = make_problem(case, device)
        reference = problem.reference()
    except torch.OutOfMemoryError as error:
        for provider in runnable:
            rows[provider.name] |= {"status": NO_MEMORY, "reason": f"the inputs: {_first_line(error)}"}
        return list(rows.values())
    clock = clock_for(device)
    correct, calls, first = [], {}, {}
    for provider in runnable:
        rows[provider.name] |= _check(problem, provider, reference)
        if rows[provider.name]["status"] == OK:
            call = _timed_call(problem, provider)
            first[provider.name] = took = time_round_robin({provider.name: call}, clock, 1)[provider.name][0]
            calls[provider.name] = call._replace(warmup=device.type == "cpu" and took < _SHORT_CALL)
            correct.append(provider)
    if not correct:
        return list(rows.values())
    rounds = int(max(config.min_rounds, min(config.max_rounds, config.seconds / sum(first.values()))))
    for name, columns in _time(case, calls, clock, rounds, copy_bytes_per_second).items():
        rows[name] |= columns
    for provider in correct:
        problem.reset()
        usage = measure_memory(functools.partial(provider.loss, problem), problem.backward, device)
        if usage.peak is not None:
            rows[provider.name] |= {"peak_extra_mb": _mib(usage.peak), "retained_mb": _mib(usage.retained)}
    return list(rows.values())


def failed_backends(rows: Iterable[Row]) -> list[Row]:
    """Returns the rows in which a backend of `sad` was wrong or failed. A run with such rows is a failure."""
    own = {provider.name for providers in PROVIDERS.values() for provider in providers if provider.is_sad}
    return [row for row in rows if row["provider"] in own and row["status"] in (WRONG, FAILED)]


def _time(
    case: Case, calls: dict[str, TimedCall], clock: WallClock | EventClock, rounds: int, copy_bytes_per_second: float
) -> dict[str, Row]:
    """Times the calls and returns each provider's columns of time and bandwidth."""
    seconds = time_round_robin(calls, clock, rounds)
    ratio = speedups(seconds, BASELINE)
    found: dict[str, Row] = {}
    for name, call in calls.items():
        typical = median(seconds[name])
        row = {"ms": _round(1e3 * typical), "rounds": rounds, "copy_gb_per_s": _round(copy_bytes_per_second / 1e9)}
        if isinstance(clock, EventClock):
            row["ms_warm"] = _round(1e3 * clock.warm(call, typical))
        if name in ratio:
            row["times_pytorch"] = _round(ratio[name])
        if case.moved_bytes is not None:
            per_second = case.moved_bytes / typical
            row |= {"moved_mb": _round(case.moved_bytes / _MIB), "copy_fraction": _round(per_second / copy_bytes_per_second)}
        found[name] = row
    return found


def _timed_call(problem: Problem, provider: Provider) -> TimedCall:
    reads_gradient = problem.device.type == "cpu" and not provider.in_place

    def call() -> None:
        for leaf in problem.leaves:
            leaf.grad = None
        problem.backward(provider.loss(problem))
        if reads_gradient:  # the system allocates pages when they are first touched, so the time must include a read
            for leaf in problem.leaves:
                leaf.grad.sum()

    return TimedCall(problem.reset, call)


def _check(problem: Problem, provider: Provider, reference: Reference) -> Row:
    """Runs the provider once on the tensors that will be timed and compares the result with the reference."""
    problem.reset()
    try:
        loss = provider.loss(problem)
        problem.backward(loss)
        error = problem.error(loss.detach(), reference)
    except (torch.OutOfMemoryError, MemoryError) as out_of_memory:
        return {"status": NO_MEMORY, "reason": _first_line(out_of_memory)}
    except Exception as failure:  # any failure of a provider is a result of the benchmark
        return {"status": FAILED, "reason": f"{type(failure).__name__}: {_first_line(failure)}"}
    bound = (TOLERANCE if problem.case.hidden is None else LINEAR_TOLERANCE)[problem.case.dtype]
    if math.isfinite(error) and error <= bound:
        return {"status": OK, "error": f"{error:.1e}"}
    reason = f"not timed: its relative error {error:.1e} is above the tolerance {bound:.0e}"
    return {"status": WRONG, "reason": reason, "error": f"{error:.1e}"}


def _not_run(case: Case, device: torch.device, providers: Sequence[Provider], reason: str) -> list[Row]:
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
    """Returns why a case is not tried on a CPU, or None. On a GPU an attempt is safe."""
    free = available_bytes() if device.type == "cpu" else None
    if free is None or needed <= 0.9 * free:
        return None
    return f"needs about {needed / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB are free"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[0][:200]


def _mib(size: int) -> float:
    return round(size / _MIB, 1)


def _round(value: float) -> float:
    return float(f"{value:.4g}")
