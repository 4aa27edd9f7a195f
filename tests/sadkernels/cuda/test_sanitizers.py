"""Runs tests of the emulated kernels under sanitizers: no access out of bounds, no undefined behaviour, no data race.

Each test starts a process with kernels compiled for one sanitizer. ThreadSanitizer reports a missing `__syncthreads` as a
data race between two threads. A process takes seconds to start, and the sanitizers make kernels slow. So the tests are
chosen by name: every kernel, strategy, divergence and dtype at least once, pairs of options instead of all combinations,
rows shorter and longer than a group, odd and even, aligned and not.
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


def sanitized(sanitizer: str, arguments: list[str], modes: str = "") -> subprocess.CompletedProcess:
    """Runs Python with `arguments` under a sanitizer, and the kernels in modes of the emulation."""
    if reason := emulated.unbuildable():
        pytest.skip(reason)
    runtimes = []
    for name in PRELOADED[sanitizer]:
        done = subprocess.run([emulated.compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        if not os.path.isabs(done.stdout.strip()):
            pytest.skip(f"{emulated.compiler()} comes without {name}")
        runtimes.append(done.stdout.strip())
    environment = os.environ | OPTIONS[sanitizer] | {"LD_PRELOAD": " ".join(runtimes)}
    environment |= {"SAD_CUDA_EMULATED": str(emulated.library(sanitizer)), "SAD_EMULATION": modes}
    environment |= {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }  # ThreadSanitizer does not know the barriers of PyTorch's threads
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=emulated.ROOT, capture_output=True, text=True, timeout=560)


def pytest_of(tests: dict[str, list[str]]) -> list[str]:
    """Returns the arguments of a pytest run that prints the sanitizer's report.

    Args:
        tests: Test names by file below `tests`.
    """
    names = [f"tests/{file}::{test}" for file, chosen in tests.items() for test in chosen]
    return ["-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-W", "ignore", *names]


def output_end(done: subprocess.CompletedProcess) -> str:
    return done.stdout[-3000:] + done.stderr[-6000:]


WHOLE_ROWS = [
    "test_whole_rows[one block-jsd-torch.bfloat16]",
    "test_whole_rows[cluster of 2-forward_kl-torch.bfloat16]",
    "test_whole_rows[cluster of 4-jsd-torch.float32]",
    "test_whole_rows[cluster of 8-forward_kl-torch.float32]",
    "test_whole_rows[streamed-forward_kl-torch.bfloat16]",
    "test_whole_rows[L2 exceeded-jsd-torch.float32]",
]
IN_BOUNDS = {
    "sadkernels/test_span_kl.py": [
        *(f"test_sizes[cuda-V{vocab}]" for vocab in (1, 7, 16, 257, 2048)),
        "test_long_rows[cuda-3-{}]",
        "test_dtypes[cuda-torch.float32-torch.bfloat16]",
        "test_dtypes[cuda-torch.bfloat16-torch.float16]",
        "test_dtypes[cuda-torch.float16-torch.float16]",
        "test_shift_uses_the_span_id_of_the_next_token[cuda]",
        "test_padded_vocabularies_exclude_the_padding[cuda-(71, 80)]",
        "test_padded_vocabularies_exclude_the_padding[cuda-(80, 71)]",
        "test_nothing_supervised_is_exactly_zero[cuda-none-5]",
        "test_stats[cuda-]",
    ],
    "sadkernels/test_span_kl_divergences.py": [
        "test_sizes[cuda-V7-jsd]",
        "test_sizes[cuda-V257-reverse_kl]",
        "test_stats[cuda-jsd]",
    ],
    "sadkernels/test_span_kl_inputs.py": [
        "test_strides[cuda-none-teacher expanded]",
        "test_strides[cuda-mean-transposed leading dimensions]",
    ],
    "sadkernels/cuda/test_launch_plans.py": [
        *WHOLE_ROWS,
        "test_deferred_rows[cluster of 2]",
        "test_deferred_rows[streamed]",
        "test_a_single_long_row[{'divergence': 'reverse_kl'}]",
    ],
    "sadkernels/test_topk_span_kl_edges.py": ["test_absent_repeated_and_out_of_range_ids[cuda]"],
    "sadkernels/cuda/test_topk.py": [
        "test_a_row_of_several_windows[{'logit_softcap': 20.0}]",
        "test_rows_that_begin_anywhere[torch.float32]",
        "test_rows_that_begin_anywhere[torch.bfloat16]",
        "test_deferred_rows[mean]",
    ],
    "sad/trajectories/test_spans.py": ["test_agrees_with_counting_characters[cuda]", "test_masks_and_ragged_tensors[cuda]"],
}
RACES = {
    "sadkernels/test_span_kl.py": [
        "test_sizes[cuda-V1]",
        "test_sizes[cuda-V2049]",
        "test_long_rows[cuda-1-{}]",
        "test_stats[cuda-]",
    ],
    "sadkernels/test_span_kl_divergences.py": ["test_stats[cuda-jsd]"],
    "sadkernels/cuda/test_launch_plans.py": [
        *WHOLE_ROWS,
        "test_deferred_rows[cluster of 2]",
        "test_deferred_rows[streamed]",
        "test_a_single_long_row[{'divergence': 'reverse_kl'}]",
    ],
    "sadkernels/cuda/test_topk.py": [
        "test_a_row_of_several_windows[{}]",
        "test_rows_that_begin_anywhere[torch.bfloat16]",
        "test_a_block_takes_row_after_row",
        "test_deferred_rows[mean]",
    ],
}


def test_accesses_are_in_bounds():
    done = sanitized(ASAN, pytest_of(IN_BOUNDS))
    assert done.returncode == 0 and " passed" in done.stdout, output_end(done)


def test_no_races():
    done = sanitized(TSAN, pytest_of(RACES))
    assert done.returncode == 0 and " passed" in done.stdout, output_end(done)


def test_a_missing_barrier_is_found():
    tests = {"sadkernels/test_span_kl.py": ["test_sizes[cuda-V2049]"]}
    done = sanitized(TSAN, pytest_of(tests), "drop-barrier=reduce_block")
    assert done.returncode == FOUND_BY_TSAN and "data race" in done.stderr, output_end(done)


TWO_CALLS = """
import torch
from sadkernels.native import extension

def address(*numbers, dtype=torch.int64):
    keep.append(torch.tensor(numbers, dtype=dtype))
    return keep[-1].data_ptr()

keep = []
kernels = extension.load("cuda")
for missing in (0, 1):
    ids = torch.empty(256 - missing, dtype=torch.uint8)
    params = kernels.SpanIdsParams(
        offsets=address(*range(514)), batch=1, tokens=256, starts=address(0), ends=address(99),
        kinds=address(1, dtype=torch.uint8), row_splits=address(0, 1), ids=ids.data_ptr(),
    )
    kernels.span_ids_from_offsets(params, device=0, stream=0)
    print("no fault, missing", missing, flush=True)
"""


def test_an_access_behind_a_tensor_is_found():
    """The sanitizer also watches the memory of tensors: an access one byte behind the end stops the program."""
    done = sanitized(ASAN, ["-c", TWO_CALLS])
    assert done.stdout == "no fault, missing 0\n", output_end(done)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr, output_end(done)
