"""Measures cases: which providers can run each case, which are correct, and the time and memory of the correct ones."""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    """How long the timing of one case takes, and which providers are timed together.

    Attributes:
        seconds: Approximate time of all rounds.
        min_rounds: Least number of rounds, even if they take longer.
        max_rounds: Largest number of rounds.
        in_pairs: Whether each provider is checked and timed alone with the baseline, and its row is complete before the next
            provider starts. Otherwise all providers are timed together. Default: True on a GPU, where a provider can end the
            process.
    """

    seconds: float = 20.0
    min_rounds: int = 5
    max_rounds: int = 100
    in_pairs: bool | None = None


QUICK_TIMING = TimingConfig(1.0, 3, 30)


class DeviceLost(RuntimeError):
    """A provider left the GPU in a state in which this process cannot use it any more."""


def measure_cases(
    cases: Iterable[Case],
    device: torch.device,
    *,
    only: Sequence[str] = (),
    quick: bool = False,
    config: TimingConfig | None = None,
    budget: float | None = None,
    done: Mapping[tuple[str, str, str], str] | None = None,
) -> Iterator[Iterator[Row]]:
    """Measures the cases in order. Yields for each case an iterator of its rows, in the order of `PROVIDERS`.

    A row is measured when its iterator reaches it. Exhaust each iterator before the next one.

    Args:
        cases: The cases.
        device: The device.
        only: Names of the providers to measure. Empty: all of them.
        quick: Whether to skip the slow providers that `only` does not name.
        config: The timing of one case. Default: `TimingConfig()`.
        budget: Seconds after which no further case starts. The remaining cases are reported as not run.
        done: By op, case and provider, the status of the rows that exist already. They are left out.

    Raises:
        DeviceLost: After the row of the provider that caused it.
    """
    done = done or {}
    if device.index is not None:
        torch.cuda.set_device(device)  # kernels are launched on the current device
    begin, bandwidth = time.monotonic(), None
    for case in cases:
        chosen = [provider for provider in PROVIDERS[case.op] if not only or provider.name in only]
        missing = {provider.name for provider in chosen if (case.op, case.name, provider.name) not in done}
        if not missing:
            continue
        if budget is not None and time.monotonic() - begin > budget:
            reason = f"not started within the budget of {budget:g} seconds"
            yield iter([_not_run(case, device, provider, reason) for provider in chosen if provider.name in missing])
            continue
        bandwidth = bandwidth or copy_bandwidth(device)
        again = {BASELINE} if done.get((case.op, case.name, BASELINE)) == OK else set()  # the others are compared with it
        chosen = [provider for provider in chosen if provider.name in missing | again]
        skipped = {x.name: x.slow for x in chosen if quick and x.slow and x.name not in only}
        rows = measure_case(case, device, chosen, bandwidth, config or TimingConfig(), skipped=skipped)
        yield (row for row in rows if row["provider"] in missing)
        gc.collect()  # once per case, because it takes a large part of a second
        if device.type == "cuda":
            torch.cuda.empty_cache()


def first_missing(
    cases: Iterable[Case], only: Sequence[str], done: Mapping[tuple[str, str, str], str]
) -> tuple[Case, Provider] | None:
    """Returns the case and the provider that `measure_cases` would measure first, or None if no row is missing."""
    for case in cases:
        for provider in PROVIDERS[case.op]:
            if (not only or provider.name in only) and (case.op, case.name, provider.name) not in done:
                return case, provider
    return None


def ended_row(case: Case, provider: Provider, device: torch.device) -> Row:
    """Returns the row of a provider that ended the process that measured it."""
    return _blank(case, device, provider) | {"status": FAILED, "reason": "the process ended while this provider ran"}


def measure_case(
    case: Case,
    device: torch.device,
    providers: Sequence[Provider],
    copy_bytes_per_second: float,
    config: TimingConfig,
    make_problem: Callable[[Case, torch.device], Problem] = make_problem,
    skipped: Mapping[str, str] | None = None,
) -> Iterator[Row]:
    """Measures one case and yields one row per provider, in their order; see `record.FIELDS`.

    Args:
        case: The case.
        device: The device.
        providers: The providers. Speed-ups need `BASELINE` among them, as the first one.
        copy_bytes_per_second: The device's copy bandwidth.
        config: The timing.
        make_problem: Makes the inputs.
        skipped: By name of a provider, why it is not measured.

    Raises:
        DeviceLost: After the row of the provider that caused it.
    """
    rows, runnable = {}, []
    for provider in providers:
        reason = (skipped or {}).get(provider.name) or _why_not(provider, case, device)
        rows[provider.name] = _not_run(case, device, provider, reason) if reason else _blank(case, device, provider)
        runnable += [] if reason else [provider]
    in_pairs = device.type == "cuda" if config.in_pairs is None else config.in_pairs
    groups = [[provider] for provider in providers] if in_pairs else [providers]
    if runnable:
        config = config._replace(seconds=config.seconds / (len(runnable) if in_pairs else 1))
        try:
            run = _CaseRun(make_problem(case, device), copy_bytes_per_second, config)
        except torch.OutOfMemoryError as error:
            for provider in runnable:
                rows[provider.name] |= {"status": NO_MEMORY, "reason": f"the inputs: {_first_line(error)}"}
            runnable = []
    for group in groups:
        if measured := [provider for provider in group if provider in runnable]:
            run.measure(measured, rows)
        yield from (rows[provider.name] for provider in group)
        if measured and run.failed and not _works(device):
            raise DeviceLost(f"the GPU cannot be used after {', '.join(provider.name for provider in group)}")


class _CaseRun:
    """The inputs and the reference of one case, and the measurement of providers on them.

    Attributes:
        failed: Whether a provider failed.
    """

    def __init__(self, problem: Problem, copy_bytes_per_second: float, config: TimingConfig) -> None:
        self._problem, self._reference = problem, problem.reference()
        self._copy_bytes_per_second, self._config = copy_bytes_per_second, config
        self._clock = clock_for(problem.device)
        self._baseline: dict[str, TimedCall] = {}
        self.failed = False

    def measure(self, providers: Sequence[Provider], rows: dict[str, Row]) -> None:
        """Checks the providers, times the correct ones together with the baseline, and completes their rows."""
        calls, first = dict(self._baseline), {}
        for provider in providers:
            row = rows[provider.name]
            row |= _check(self._problem, provider, self._reference)
            self.failed |= row["status"] == FAILED
            if row["status"] == OK:
                call = _timed_call(self._problem, provider)
                first[provider.name] = took = time_round_robin({provider.name: call}, self._clock, 1)[provider.name][0]
                calls[provider.name] = call._replace(warmup=self._problem.device.type == "cpu" and took < _SHORT_CALL)
        if not first:
            return
        config, expected = self._config, sum(first.values()) * len(calls) / len(first)
        rounds = int(max(config.min_rounds, min(config.max_rounds, config.seconds / expected)))
        timed = _time(self._problem.case, calls, self._clock, rounds, self._copy_bytes_per_second)
        for provider in (provider for provider in providers if provider.name in first):
            rows[provider.name] |= timed[provider.name] | _memory(self._problem, provider)
        if BASELINE in first:
            self._baseline = {BASELINE: calls[BASELINE]}


def _works(device: torch.device) -> bool:
    """Whether this process can still use the device. An illegal access makes every later call fail."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


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
        if provider.is_bound:
            return {"status": OK, "error": ""}
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


def _memory(problem: Problem, provider: Provider) -> Row:
    """Measures the memory of one call and returns the columns, or none if the system cannot measure it."""
    problem.reset()
    usage = measure_memory(functools.partial(provider.loss, problem), problem.backward, problem.device)
    return {} if usage.peak is None else {"peak_extra_mb": _mib(usage.peak), "retained_mb": _mib(usage.retained)}


def _not_run(case: Case, device: torch.device, provider: Provider, reason: str) -> Row:
    return _blank(case, device, provider) | {"status": NOT_RUN, "reason": reason}


def _why_not(provider: Provider, case: Case, device: torch.device) -> str | None:
    return provider.why_not(case, device) or _too_large(provider.bytes_needed(case) + case.input_bytes, device)


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
