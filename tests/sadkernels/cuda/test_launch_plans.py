"""Every launch plan gives the same numbers. The properties of the GPU decide which plan is used."""

from __future__ import annotations

import pytest
import torch

from sadkernels import tuning
from sadkernels.native import extension
from tests.sadkernels.cuda.conftest import DEFAULT_GPU, gpu
from tests.sadkernels.span_kl_cases import assert_close_to_truth, logits, run, truth

EIGHT_SMALL = gpu(90, 6, 14, gpc_sms=(4,))
GPUS = {  # with the strategy and the cluster size for rows of 3001 float32 columns
    "one block": (DEFAULT_GPU, "resident", 1),
    "cluster of 2": (gpu(90, 15, 32), "resident", 2),
    "cluster of 4": (gpu(90, 8.5, 20), "resident", 4),
    "cluster of 8": (EIGHT_SMALL, "resident", 8),
    "streamed": (gpu(80, 3, 4), "streamed", 1),
    "L2 exceeded": (gpu(86, 3, 4, l2_bytes=8 << 10), "streamed", 1),
}


def planned(
    properties: dict, rows: int, vocab: int = 3001, lean: bool = True, ptx_version: int = 90, **choice: object
) -> dict:
    kernels = extension.load("cuda")
    sizes = {"rows": rows, "vocab": vocab, "element_bytes": 4, "lean": lean, "choice": kernels.PlanChoice(**choice)}
    return kernels.plan(**properties, sm_threads=2048, ptx_version=ptx_version, **sizes)


def check_five_rows(backend, dtype=torch.float32, **options) -> None:
    """Checks value and gradient of five rows of 3001 columns."""
    student, teacher = logits(5, 3001, dtype), logits(5, 3001, dtype)
    ids = torch.tensor([1, 0, 2, 2, 1])
    got = run(student, teacher, ids, backend, **options)
    assert_close_to_truth(got, truth(student, teacher, ids, **options), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"divergence": "jsd"}], ids=["forward_kl", "jsd"])
@pytest.mark.parametrize("name", GPUS)
def test_whole_rows(emulated_backend, set_gpu, name, options, dtype):
    properties, strategy, cluster = GPUS[name]
    set_gpu(properties)
    plan = planned(properties, 5, lean=not options)
    assert (plan["strategy"], plan["cluster"]) == (strategy, cluster)
    check_five_rows(emulated_backend, dtype, **options)


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
    properties = gpu(90, 227, 228, gpc_sms=(16,))
    set_gpu(properties)
    assert planned(properties, 1, 40_000)["slices"] > 1
    student, teacher, ids = logits(1, 40_000), logits(1, 40_000), torch.tensor([2])
    got = run(student, teacher, ids, emulated_backend, **options)
    assert_close_to_truth(got, truth(student, teacher, ids, **options), torch.float32)


def test_code_without_clusters_on_a_gpu_with_clusters(emulated_backend, set_gpu):
    """The driver compiles PTX for sm_80 on an H100. This code regards every block as a cluster of its own."""
    assert planned(EIGHT_SMALL, 5, ptx_version=80)["strategy"] == "streamed"
    set_gpu(EIGHT_SMALL, code_arch=80)
    check_five_rows(emulated_backend)


def test_a_launch_in_clusters_that_the_code_does_not_have_stops(emulated_backend, set_gpu):
    """The runtime reports code for sm_90 and the kernels behave as code for sm_80: an error instead of wrong numbers."""
    set_gpu(EIGHT_SMALL, code_arch=80, ptx_version=90)
    with pytest.raises(RuntimeError, match="trap"):
        check_five_rows(emulated_backend)


def test_no_place_for_a_cluster(emulated_backend, set_gpu):
    """In a part of a GPU, no GPC may have the SMs of a cluster of 8, although all GPCs together have them."""
    parts = EIGHT_SMALL | {"gpc_sms": [2, 2]}
    assert planned(EIGHT_SMALL, 5)["cluster"] == 8
    assert planned(parts, 5)["strategy"] == "streamed"
    set_gpu(parts)
    check_five_rows(emulated_backend)


@pytest.mark.parametrize("options", [{}, {"divergence": "reverse_kl"}], ids=["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("choice", tuning.CANDIDATES["cuda.lean"], ids=str)
def test_a_chosen_plan_for_whole_rows(emulated_backend, set_gpu, choice, options):
    """On a GPU whose derived plan is one block per row."""
    properties = gpu(90, 227, 228, gpc_sms=(8,))
    set_gpu(properties)
    plan = planned(properties, 500, lean=not options, **choice)
    assert (plan["strategy"], plan["cluster"]) == (choice["strategy"], choice.get("cluster", 1))
    with tuning.forced({"cuda.roomy" if options else "cuda.lean": choice}):
        check_five_rows(emulated_backend, **options)


def test_the_share_of_a_streamed_plan(emulated_backend):
    properties = gpu(90, 227, 228, gpc_sms=(8,))
    blocks = [planned(properties, 500, 50_257, **choice)["blocks"] for choice in tuning.CANDIDATES["cuda.lean"][4:]]
    assert blocks == [16, 12, 8]
    assert planned(properties, 3, 50_257, strategy="streamed", waves=0)["blocks"] == 3


def test_a_chosen_cluster_that_does_not_fit(emulated_backend, set_gpu):
    """The derived plan replaces it: rows of 3001 columns do not fit in 2 blocks of 6 KiB."""
    assert planned(EIGHT_SMALL, 5, strategy="resident", cluster=2) == planned(EIGHT_SMALL, 5)
    no_clusters = gpu(80, 163, 164)
    assert planned(no_clusters, 5, strategy="resident", cluster=2) == planned(no_clusters, 5)
    set_gpu(EIGHT_SMALL)
    with tuning.forced({"cuda.lean": {"strategy": "resident", "cluster": 2}}):
        check_five_rows(emulated_backend)


@pytest.mark.parametrize("waves", [0, 1, 2])
def test_chosen_slices(emulated_backend, set_gpu, waves):
    properties = gpu(90, 227, 228, gpc_sms=(4,))
    set_gpu(properties)
    slices = planned(properties, 1, 60_000, waves=waves)["slices"]
    assert slices == {0: 1, 1: 4, 2: 8}[waves]
    student, teacher, ids = logits(1, 40_000), logits(1, 40_000), torch.tensor([2])
    with tuning.forced({"cuda.slices": {"waves": waves}}):
        got = run(student, teacher, ids, emulated_backend)
    assert_close_to_truth(got, truth(student, teacher, ids), torch.float32)
    assert planned(properties, 500, 60_000, waves=2)["slices"] == 1  # rows for all blocks
