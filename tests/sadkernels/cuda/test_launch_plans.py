"""Every launch plan gives the same numbers. The properties of the GPU decide which plan is used."""

from __future__ import annotations

import pytest
import torch

from sadkernels.native import extension
from tests.sadkernels.cuda.conftest import DEFAULT_GPU, gpu
from tests.sadkernels.span_kl_cases import assert_close_to_truth, logits, run, truth

GPUS = {  # with the strategy and the cluster size for rows of 3001 float32 columns
    "one block": (DEFAULT_GPU, "resident", 1),
    "cluster of 2": (gpu(90, 15, 32), "resident", 2),
    "cluster of 4": (gpu(90, 8.5, 20), "resident", 4),
    "cluster of 8": (gpu(90, 6, 14), "resident", 8),
    "streamed": (gpu(80, 3, 4), "streamed", 1),
    "L2 exceeded": (gpu(86, 3, 4, l2_bytes=8 << 10), "streamed", 1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"divergence": "jsd"}], ids=["forward_kl", "jsd"])
@pytest.mark.parametrize("name", GPUS)
def test_whole_rows(emulated_backend, set_gpu, name, options, dtype):
    properties, strategy, cluster = GPUS[name]
    set_gpu(properties)
    plan = extension.load("cuda").plan(**properties, rows=5, vocab=3001, element_bytes=4, lean=not options)
    assert (plan["strategy"], plan["cluster"]) == (strategy, cluster)
    student, teacher = logits(5, 3001, dtype), logits(5, 3001, dtype)
    ids = torch.tensor([1, 0, 2, 2, 1])
    got = run(student, teacher, ids, emulated_backend, **options)
    assert_close_to_truth(got, truth(student, teacher, ids, **options), dtype)


@pytest.mark.parametrize("name", GPUS)
def test_deferred_rows(emulated_backend, set_gpu, name):
    """Rows with logits of 2^30 between others. A lean kernel defers them, and they do not change a bit of the others.

    The gradient overwrites the logits, so a lean kernel must not write that of a deferred row.
    """
    set_gpu(GPUS[name][0])
    huge, options = torch.tensor([False, True, True, False, False, True]), {"temperature": 16.0}
    student, teacher = 16 * logits(6, 3001), 16 * logits(6, 3001)
    ids = torch.tensor([1, 2, 1, 0, 2, 2])
    without_huge = run(student.clone(), teacher, ids, emulated_backend, inplace_backward=True, **options)
    student[huge] = 2.0**30 - 128.0 * torch.randint(4, (3, 3001))
    exact = truth(student, teacher, ids, **options)
    got = run(student, teacher, ids, emulated_backend, inplace_backward=True, **options)
    assert_close_to_truth(got, exact, torch.float32)
    assert torch.equal(got[1][~huge], without_huge[1][~huge])


@pytest.mark.parametrize("options", [{}, {"divergence": "reverse_kl"}, {"reduction": "none"}], ids=str)
def test_a_single_long_row(emulated_backend, set_gpu, options):
    """One row on 16 SMs is split into slices."""
    properties = gpu(90, 227, 228, sms=16)
    set_gpu(properties)
    assert extension.load("cuda").plan(**properties, rows=1, vocab=40_000, element_bytes=4, lean=True)["slices"] > 1
    student, teacher, ids = logits(1, 40_000), logits(1, 40_000), torch.tensor([2])
    got = run(student, teacher, ids, emulated_backend, **options)
    assert_close_to_truth(got, truth(student, teacher, ids, **options), torch.float32)
