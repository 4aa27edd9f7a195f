"""The faults that the emulation of the CUDA kernels finds: small faulty kernels, and the real kernels in every mode."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from tests.sadkernels.cuda import emulated, test_launch_plans, test_topk
from tests.sadkernels.cuda.test_launch_plans import GPUS

ODD_ADDRESS = "a 16-byte access at an address that is no multiple of 16"


@pytest.fixture(scope="module")
def faulty() -> Path:
    if reason := emulated.unbuildable():
        pytest.skip(reason)
    return emulated.program(Path(__file__).with_name("faulty_kernels.cpp"))


def output(program: Path, kernel: str, modes: str = "") -> str:
    environment = os.environ | {"SAD_EMULATION": modes}
    done = subprocess.run([program, kernel], env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("kernel", "found"),
    [
        ("reads_before_the_wait", "wrong"),
        ("waits_for_too_few_copies", "wrong"),
        ("refills_before_the_last_read", "wrong"),
        ("copies_from_an_odd_address", ODD_ADDRESS),
        ("loads_from_an_odd_address", ODD_ADDRESS),
        ("stores_to_an_odd_address", ODD_ADDRESS),
        ("reads_from_a_finished_block", "wrong"),
        ("reads_what_an_earlier_block_left", "wrong"),
        ("has_a_barrier_in_a_branch", "40 threads of block (0, 0) and its cluster wait in a barrier"),
    ],
)
def test_every_run_finds(faulty, kernel, found):
    assert found in output(faulty, kernel)


@pytest.mark.parametrize(
    ("mode", "kernel"),
    [
        ("eager-copies", "changes_the_source_of_a_copy"),
        ("noise=1", "relies_on_exact_powers"),
        ("noise=1", "relies_on_subnormals"),
        ("threads=512", "sums_two_warps_only"),
        ("order=1", "reads_from_the_block_before"),
        ("order=1", "reads_from_the_thread_before"),
    ],
)
def test_a_mode_finds(faulty, mode, kernel):
    """Without the mode, the faulty kernel seems to be right."""
    assert (output(faulty, kernel), output(faulty, kernel, mode)) == ("right\n", "wrong\n")


def test_an_unknown_mode(emulated_backend, monkeypatch):
    monkeypatch.setenv("SAD_EMULATION", "order=1 threads=100")
    with pytest.raises(ValueError, match=r"SAD_EMULATION: expected eager-copies, .* got threads=100"):
        test_launch_plans.check_five_rows(emulated_backend)


@pytest.mark.parametrize("mode", ["eager-copies", "noise=1", "noise=2", "threads=512", "order=1", "order=2 eager-copies"])
def test_kernels(emulated_backend, set_gpu, monkeypatch, mode):
    """Every strategy of the span KL, rows that are deferred, slices, and top-k rows of several windows."""
    monkeypatch.setenv("SAD_EMULATION", mode)
    for number, (properties, _, _) in enumerate(GPUS.values()):
        set_gpu(properties)
        dtype = torch.bfloat16 if number % 2 else torch.float32
        test_launch_plans.check_five_rows(emulated_backend, dtype)
        test_launch_plans.check_five_rows(emulated_backend, torch.float32, divergence="jsd" if number % 2 else "reverse_kl")
    test_launch_plans.test_deferred_rows(emulated_backend, set_gpu, "cluster of 2")
    test_launch_plans.test_a_single_long_row(emulated_backend, set_gpu, {"divergence": "jsd"})
    test_topk.test_a_row_of_several_windows(emulated_backend, set_gpu, {"logit_softcap": 20.0})
    test_topk.test_deferred_rows(emulated_backend, set_gpu, "mean")
