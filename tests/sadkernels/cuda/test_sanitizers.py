"""Runs tests of the emulated kernels under sanitizers: no access out of bounds, no undefined behaviour, no data race.

Each test starts a process with kernels compiled for one sanitizer. ThreadSanitizer reports a missing `__syncthreads` as a
data race between two threads.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.sadkernels.cuda import emulated

ASAN, TSAN = "address,undefined", "thread"
OPTIONS = {
    ASAN: {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    TSAN: {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1:exitcode=66:halt_on_error=1"},
}
PRELOADED = {ASAN: ("libasan.so", "libstdc++.so"), TSAN: ("libtsan.so",)}  # libstdc++: for its exceptions
FOUND_BY_TSAN = 66

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sanitizers are preloaded as on Linux")


def sanitized(sanitizer: str, arguments: list[str], defines: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Runs Python with `arguments` under a sanitizer."""
    if reason := emulated.unbuildable():
        pytest.skip(reason)
    runtimes = []
    for name in PRELOADED[sanitizer]:
        done = subprocess.run([emulated.compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        if not os.path.isabs(done.stdout.strip()):
            pytest.skip(f"{emulated.compiler()} comes without {name}")
        runtimes.append(done.stdout.strip())
    environment = os.environ | OPTIONS[sanitizer] | {"LD_PRELOAD": " ".join(runtimes)}
    environment |= {"SAD_CUDA_EMULATED": str(emulated.library(sanitizer, defines)), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"OMP_NUM_THREADS": "1"}  # ThreadSanitizer does not know the barriers of PyTorch's threads
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=emulated.ROOT, capture_output=True, text=True, timeout=560)


def selection(*files: str, select: str) -> list[str]:
    """Returns the arguments of a pytest run that prints the sanitizer's report."""
    return ["-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-W", "ignore", *files, "-k", select]


def output_end(done: subprocess.CompletedProcess) -> str:
    return done.stdout[-3000:] + done.stderr[-6000:]


KERNELS = "tests/sadkernels"
SPAN_ID_TESTS = "tests/sad/trajectories/test_spans.py"


def test_accesses_are_in_bounds():
    files = ("test_span_kl.py", "test_span_kl_divergences.py", "test_span_kl_inputs.py", "cuda/test_launch_plans.py")
    files += ("test_topk_span_kl_edges.py", "cuda/test_topk.py")
    bodies = "test_sizes or test_long_rows or test_dtypes or test_shift or test_padded or test_strides or test_stats"
    bodies += " or nothing_supervised or test_spans or test_absent"
    select = f"(cuda and ({bodies})) or test_launch_plans or several_windows or begin_anywhere"
    done = sanitized(ASAN, selection(*(f"{KERNELS}/{name}" for name in files), SPAN_ID_TESTS, select=select))
    assert done.returncode == 0 and " passed" in done.stdout, output_end(done)


def test_no_races():
    select = "(cuda and (test_sizes or test_stats or (in_place_gives and float32))) or (test_launch_plans and float32)"
    select += " or several_windows or row_after_row or (deferred_rows and (streamed or mean))"
    files = ("test_span_kl.py", "test_topk_span_kl_autograd.py", "cuda/test_launch_plans.py", "cuda/test_topk.py")
    done = sanitized(TSAN, selection(*(f"{KERNELS}/{name}" for name in files), select=select))
    assert done.returncode == 0 and " passed" in done.stdout, output_end(done)


def test_a_missing_barrier_is_found():
    tests = selection(f"{KERNELS}/test_span_kl.py", select="cuda and test_sizes")
    done = sanitized(TSAN, tests, ("SAD_TEST_DROP_BARRIER",))
    assert done.returncode == FOUND_BY_TSAN and "data race" in done.stderr, output_end(done)


ONE_CALL = """
import torch
from sadkernels.native import extension

def address(*numbers, dtype=torch.int64):
    keep.append(torch.tensor(numbers, dtype=dtype))
    return keep[-1].data_ptr()

keep, ids = [], torch.empty({bytes}, dtype=torch.uint8)
kernels = extension.load("cuda")
params = kernels.SpanIdsParams(
    offsets=address(*range(514)), batch=1, tokens=256, starts=address(0), ends=address(99),
    kinds=address(1, dtype=torch.uint8), row_splits=address(0, 1), ids=ids.data_ptr(),
)
kernels.span_ids_from_offsets(params, device=0, stream=0)
"""


@pytest.mark.parametrize("missing", [0, 1])
def test_an_access_behind_a_tensor_is_found(missing):
    """The sanitizer also watches the memory of tensors: an access one byte behind the end stops the program."""
    done = sanitized(ASAN, ["-c", ONE_CALL.format(bytes=256 - missing)])
    if missing:
        assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr, output_end(done)
    else:
        assert done.returncode == 0, output_end(done)
