"""Checks of the compiled kernels. Triton compiles without a GPU, but not in a process that interprets the kernels."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sadkernels.divergence import DIVERGENCES
from tests.sadkernels.roofline import check_roofline

ROOT = Path(__file__).parents[3]
ARCHITECTURES = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
SHARED_KB = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99}  # limit per thread block


def run_compiling(*command: str) -> subprocess.CompletedProcess:
    """Runs a Python command with the compiler instead of the interpreter."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, *command], env=env, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> list[dict[str, str]]:
    """Compiles a sample of kernels, divergences, dtypes and tiles, spread over the architectures."""
    out = tmp_path_factory.mktemp("offline") / "kernels.csv"
    done = run_compiling("benchmarks/offline_checks.py", "--quick", "--out", str(out))
    assert out.exists(), done.stderr
    with open(out, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_spills_and_loops_access_16_bytes(compiled, architecture):
    """Tiles that are too wide for their warps spill. Rows of 50257 columns are odd, which invites 2-byte accesses."""
    rows = [row for row in compiled if row["architecture"] == architecture]
    assert any(row["kernel"] == "forward_backward" for row in rows)
    for row in rows:
        about = {key: row[key] for key in ("kernel", "divergence", "capped", "student/teacher", "tile", "registers")}
        assert (row["spilled_bytes"], row["local_accesses"]) == ("0", "0"), about
        # the top-k forward kernels load the top-k columns one by one
        narrowest_load = "32" if row["kernel"].startswith("top-k forward") else "128"
        assert (row["narrowest_load_bits"], row["narrowest_store_bits"]) == (narrowest_load, "128"), about
        assert int(row["shared_bytes"]) <= SHARED_KB[architecture] << 10, about
        if row["tile"]:  # kernels without a tile access a few numbers per row
            assert int(row["loads_in_loops"]) >= 1, about  # otherwise the widths above would mean nothing
            writes = any(word in row["kernel"] for word in ("backward", "gradient", "scale"))
            assert int(row["stores_in_loops"]) >= writes, about
        if row["tile"] in ("pair", "crowded"):
            assert int(row["registers"]) <= 64, about  # 1024 threads fit on an SM


def test_the_hot_loops_have_not_grown(compiled):
    compared = check_roofline(compiled)
    assert compared >= len(ARCHITECTURES) + 5, "forward_backward everywhere and five more kernels on one architecture"


def test_the_sample_has_every_kernel_and_divergence(compiled):
    compiled_for = {(row["kernel"], row["divergence"]) for row in compiled}
    for kernel in (
        "forward",
        "forward_backward",
        "forward_backward, stats",
        "forward_backward, deferred rows",
        "backward",
        "slice values",
    ):
        assert {(kernel, divergence) for divergence in DIVERGENCES} <= compiled_for
    for kernel in (
        "log_sum_exps",
        "slice totals",
        "combine slices, stats",
        "collect rows, stats",
        "scale",
        "span ids",
        "row weights",
        "row sums, stats",
    ):
        assert (kernel, "any") in compiled_for
    for kernel in ("forward, stats", "forward_backward", "forward_backward, stats", "backward"):
        assert (f"top-k {kernel}", "any") in compiled_for
    assert {row["capped"] for row in compiled} == {"", "both"}


def test_sizes_do_not_recompile():
    """One compilation per tile and dtype serves all N, V, strides and addresses, whatever divides them."""
    done = run_compiling("-m", "tests.sadkernels.triton.count_compilations")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "forward_backward": 1
        + 2 * 2,  # the index; the kernel for ordinary and deferred rows, on the short and the long tile
        "backward": 1 + 2,
        "scale": 2,
        "forward_backward out of phase": 2 * 2,  # the teacher's rows have another phase than the student's
        "slices": 3,  # totals, values, combination; one tile
        "span_ids": 2,  # ids, masks
        "top-k": 2 * 2,  # k up to 16 and up to 64, on the short and on the long tile
    }
