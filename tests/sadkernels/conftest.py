"""The backends under test: all that this machine can run, the CPU backend once per instruction set.

Without a GPU, Triton kernels run in the interpreter and CUDA kernels in the host emulation of `csrc/cuda/emulation.h`. Both
are slow, so tests with three or more parameters run there with all pairs of values instead of all combinations.
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from sadkernels import backends
from sadkernels.native import extension
from tests.interpreter import patch_language_once_per_launch
from tests.sadkernels.cuda import emulated

SLOW_ON_HOST = ("triton", "cuda")


def pytest_configure() -> None:
    patch_language_once_per_launch()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Selects the combinations of parameters for backends that are interpreted or emulated. A test named by its id runs."""
    if torch.cuda.is_available() or any("::" in argument for argument in config.args):
        return
    by_test = defaultdict(list)
    for item in items:
        parameters = getattr(item, "callspec", None)
        if Path(__file__).parent in item.path.parents and parameters and parameters.params.get("backend") in SLOW_ON_HOST:
            by_test[item.nodeid.partition("[")[0], parameters.params["backend"]].append(item)
    left_out = set()
    for same_test in by_test.values():
        left_out |= set(same_test) - set(all_pairs(same_test))
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def all_pairs(items: list[pytest.Item]) -> list[pytest.Item]:
    """Returns items of one test in which any two values that two of its parameters have in `items` occur together.

    The first and the last are always among them. With one or two parameters, all are.
    """
    pairs = {}
    for item in items:
        values = sorted((name, repr(value)) for name, value in item.callspec.params.items() if name != "backend")
        if len(values) < 3:
            return items
        pairs[item] = set(itertools.combinations(values, 2))
    chosen, found = [items[0], items[-1]], pairs[items[0]] | pairs[items[-1]]
    while missing := set().union(*pairs.values()) - found:
        chosen.append(max(items, key=lambda item: len(pairs[item] & missing)))
        found |= pairs[chosen[-1]]
    return chosen


class Backend(NamedTuple):
    """A backend and the device of its tensors."""

    name: str
    device: torch.device


def _all() -> list[str]:
    if chosen := os.environ.get("SAD_TEST_BACKENDS"):  # such as "triton,cuda" on a machine without the CPU extension
        return chosen.split(",")
    isas = extension.load("cpu").supported_isas()  # an ImportError here is a failure: the extension must be built
    return ["reference", *(f"cpu-{isa}" for isa in isas), "triton", "cuda"]


@pytest.fixture
def emulated_cuda(monkeypatch) -> None:
    """Lets the CUDA backend run on CPU tensors during a test."""
    if "SAD_CUDA_EMULATED" not in os.environ:  # otherwise the tests use the build that is named there
        if reason := emulated.unbuildable():
            pytest.skip(reason)
        monkeypatch.setenv("SAD_CUDA_EMULATED", str(emulated.library()))


@pytest.fixture(params=_all())
def backend(request, monkeypatch) -> Backend:
    name, _, isa = request.param.partition("-")
    device = torch.device("cuda" if torch.cuda.is_available() and name in ("triton", "cuda") else "cpu")
    if isa:
        monkeypatch.setenv("SAD_CPU_ISA", isa)
    if name == "cuda" and device.type == "cpu":
        request.getfixturevalue("emulated_cuda")
    if reason := backends.why_not(name, "span_kl", device, torch.float32):
        pytest.skip(reason)
    return Backend(name, device)
