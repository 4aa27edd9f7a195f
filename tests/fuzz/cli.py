"""The command line of the fuzzer: runs each backend in a child process, so that a crash of a kernel is a failed case."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from tests.fuzz import cases, check, known, machine

SLOW = 0.01  # the share of each backend that is interpreted or emulated


def main(arguments: list[str] | None = None) -> int:
    """Runs the cases, prints a table and a snippet per failure, and returns the exit status: 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Compare the losses with a float64 oracle.")
    parser.add_argument("--cases", type=int, default=2000, help="number of cases, over all backends")
    parser.add_argument("--seed", type=int, default=0, help="seed of the series; the cases of a seed never change")
    parser.add_argument("--backend", nargs="*", help="such as cpu-avx2, or cpu for all instruction sets; default: all")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--snippets", type=int, default=10, help="number of failures that are printed as programs")
    options = parser.parse_args(arguments)
    found = machine.available(options.backend)
    if not found:
        parser.error(f"--backend: expected names of backends that run here, got {options.backend}. See `sad doctor`.")
    counts: dict[tuple[str, str], Counter] = {}
    failed: list[tuple[cases.Case, str, list[str]]] = []
    for backend, number in shares(options.cases, found).items():
        started = time.monotonic()
        _in_child(backend, found[backend], options.seed, options.first, number, counts, failed)
        print(f"{backend}: {number} cases in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print(table(counts))
    for case, backend, texts in failed[: options.snippets]:
        print(f"\n# {backend}, seed {case.seed}, case {case.index}: " + "; ".join(texts))
        print(check.snippet(case, backend))
    if len(failed) > options.snippets:
        print(f"\n{len(failed) - options.snippets} more failures; --snippets prints them.")
    return 1 if failed else 0


def shares(total: int, found: dict[str, str]) -> dict[str, int]:
    """The number of cases of each backend. Interpreted and emulated kernels take few."""
    slow = [name for name in found if name in machine.GPU and found[name] == "cpu"]
    fast = [name for name in found if name not in slow]
    few = max(1, int(total * SLOW)) if fast else total // len(slow)
    rest = total - few * len(slow)
    return {name: few if name in slow else rest // len(fast) + (i < rest % len(fast)) for i, name in enumerate(fast + slow)}


def table(counts: dict[tuple[str, str], Counter]) -> str:
    """Backend, op, cases, cases that are known to fail and left out, failures."""
    lines = [f"{'backend':18}{'op':18}{'cases':>8}{'left out':>10}{'failures':>10}"]
    total: Counter = Counter()
    for (backend, op), counter in sorted(counts.items()):
        lines.append(f"{backend:18}{op:18}{counter['run']:>8}{counter['left out']:>10}{counter['failed']:>10}")
        total += counter
    return "\n".join([*lines, f"{'all':36}{total['run']:>8}{total['left out']:>10}{total['failed']:>10}"])


def _in_child(
    backend: str,
    device: str,
    seed: int,
    first: int,
    number: int,
    counts: dict[tuple[str, str], Counter],
    failed: list[tuple[cases.Case, str, list[str]]],
) -> None:
    """Runs the cases of a backend in a process of their own. A kernel that kills it is a failure like any other."""
    context = multiprocessing.get_context("spawn")
    last = first + number
    while first < last:
        current, results = context.Value("q", first), context.SimpleQueue()
        child = context.Process(target=_child, args=(backend, device, seed, first, last, current, results), daemon=True)
        child.start()
        while (result := _received(results, child)) is not None:
            index, tiny, texts, left_out = result
            case = cases.draw(seed, index, tiny)
            counter = counts.setdefault((backend, case.op), Counter())
            counter["left out" if left_out else "run"] += 1
            if texts:
                counter["failed"] += 1
                failed.append((case, backend, texts))
        child.join()
        if child.exitcode == 0:
            return
        case = cases.draw(seed, current.value, backend in machine.GPU)
        counts.setdefault((backend, case.op), Counter()).update(run=1, failed=1)
        failed.append((case, backend, [f"the process ended with exit status {child.exitcode}"]))
        first = current.value + 1


def _received(results: Any, child: Any) -> Any:
    """The next result of the child, or None if it has ended."""
    while results.empty():
        if not child.is_alive() and results.empty():
            return None
        time.sleep(0.002)
    return results.get()


def _child(backend: str, device: str, seed: int, first: int, last: int, current: Synchronized, results: Any) -> None:
    warnings.filterwarnings("ignore", module="triton")  # NumPy warns of NaN in the interpreter
    tiny = backend in machine.GPU
    for index in range(first, last):
        current.value = index
        case = cases.draw(seed, index, tiny)
        left_out = known.excluded(case, backend) is not None
        results.put((index, tiny, [] if left_out else check.failures(case, backend, device=device), left_out))
