"""The backends under test: every one that this machine can run, the CPU extension once per instruction set."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from sadkernels import backends
from sadkernels.native import extension


class Backend(NamedTuple):
    """A backend and where its tensors live."""

    name: str
    device: torch.device


def _all() -> list[str]:
    isas = extension.load("cpu").supported_isas()  # an ImportError here is a failure: the extension must be there
    return ["reference", *(f"cpu-{isa}" for isa in isas), "triton", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=_all())
def backend(request, monkeypatch) -> Backend:
    name, _, isa = request.param.partition("-")
    device = torch.device("cuda" if torch.cuda.is_available() and name in ("triton", "cuda") else "cpu")
    if isa:
        monkeypatch.setenv("SAD_CPU_ISA", isa)
    if reason := backends.why_not(name, "span_kl", device, torch.float32):
        pytest.skip(reason)
    return Backend(name, device)
