"""A run: cases one after the other, the rows of each handed on as soon as it is done."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Sequence

import torch

from sadkernels.bench.bandwidth import copy_bandwidth
from sadkernels.bench.cases import Case
from sadkernels.bench.measure import Effort, measure, not_run
from sadkernels.bench.providers import PROVIDERS, Provider
from sadkernels.bench.record import FAILED, WRONG, Row


def run(
    cases: Iterable[Case],
    device: torch.device,
    *,
    only: Sequence[str] = (),
    quick: bool = False,
    effort: Effort | None = None,
    budget: float | None = None,
) -> Iterator[list[Row]]:
    """Measures the cases in order and yields the rows of each.

    Args:
        cases: What to measure.
        device: Where.
        only: Names of the providers; all of them if empty.
        quick: Leave out the slow providers, unless `only` names them.
        effort: How long a case may be timed.
        budget: Seconds after which no further case is begun; the rest is reported as not run.
    """
    if device.index is not None:
        torch.cuda.set_device(device)  # kernels are launched on the current one
    begin, bandwidth = time.monotonic(), None
    for case in cases:
        chosen = [provider for provider in PROVIDERS[case.op] if not only or provider.name in only]
        late = budget is not None and time.monotonic() - begin > budget
        if late:
            yield not_run(case, device, chosen, f"the budget of {budget:g} seconds was spent before")
            continue
        bandwidth = bandwidth or copy_bandwidth(device)
        left_out = [provider for provider in chosen if quick and provider.too_slow and provider.name not in only]
        measured = [provider for provider in chosen if provider not in left_out]
        rows = measure(case, device, measured, bandwidth, effort or Effort())
        for provider in left_out:
            rows += not_run(case, device, [provider], provider.too_slow)
        yield _in_order(rows, chosen)
        gc.collect()  # once a case: it takes a good part of a second
        if device.type == "cuda":
            torch.cuda.empty_cache()


def broken(rows: Iterable[Row]) -> list[Row]:
    """The rows in which one of ours was wrong or failed: a run that has any is a failure."""
    ours = {provider.name for of_op in PROVIDERS.values() for provider in of_op if provider.ours}
    return [row for row in rows if row["provider"] in ours and row["status"] in (WRONG, FAILED)]


def _in_order(rows: list[Row], providers: Sequence[Provider]) -> list[Row]:
    order = {provider.name: place for place, provider in enumerate(providers)}
    return sorted(rows, key=lambda row: order[row["provider"]])
