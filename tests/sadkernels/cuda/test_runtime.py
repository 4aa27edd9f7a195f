"""The queries of the CUDA runtime that the launch plans need, on a runtime that `runtime_facts.cpp` replaces."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.sadkernels.cuda.emulated import CSRC

REST = "1 limits, the last 232000 bytes, devices set 0 and 2 times, now 0, 0 errors left"


@pytest.fixture(scope="module")
def program(nvcc, tmp_path_factory) -> Path:
    built = tmp_path_factory.mktemp("runtime") / "runtime_facts"
    includes = [f"-I{CSRC}", f"-I{CSRC / 'cuda'}"]
    source = Path(__file__).with_name("runtime_facts.cpp")
    command = [nvcc, "-std=c++17", "-cudart", "none", "-Xcompiler=-pthread", *includes, str(source), "-o", str(built)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return built


@pytest.mark.parametrize(
    ("ptx_version", "places", "found"),
    [
        (90, 31, "blocks 264, in clusters 248, 2 queries"),
        (100, 0, "blocks 264, in clusters 0, 2 queries"),  # a part of a GPU without a place for a cluster
        (90, -1, "blocks 264, in clusters 0, 2 queries"),
        (80, 31, "blocks 264, in clusters 0, 1 queries"),  # compiled for the GPU from PTX without clusters
    ],
)
def test_kernel_facts(program, ptx_version, places, found):
    """Each fact is queried once. The limit of shared memory is set once, to all that the kernel's own memory leaves."""
    done = subprocess.run([program, str(ptx_version), str(places)], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{found}, {REST}\n"
