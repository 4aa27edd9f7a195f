"""The CUDA backend as compiled code. The bodies of the tests are those of the other backends.

Kernels that a test does not name run in the emulation. Each architecture is one compilation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from sad import Span, span_ids_from_offsets
from tests.ptx.cuda_kernels import CSRC
from tests.sadkernels import test_span_kl, test_topk_span_kl
from tests.sadkernels.conftest import Backend
from tests.sadkernels.span_kl_cases import assert_close_to_truth, logits, run, truth

FP32, BF16 = torch.float32, torch.bfloat16
CUDA = Backend("cuda", torch.device("cpu"))
IDS = torch.tensor([1, 2, 0, 2, 1])
ROWS = "(const __grid_constant__ LaunchArgs)"


def source(*kernels: str) -> str:
    """Returns code that instantiates kernels."""
    instantiated = "\n".join(f"template __global__ void {kernel};" for kernel in kernels)
    return f"""
#include "instantiate.cuh"
#include "supervised_rows.cuh"
namespace sad::cuda {{
const void* collect_rows() {{ return reinterpret_cast<const void*>(&collect_rows_kernel); }}
{instantiated}
}}
"""


KERNELS = {
    80: source(
        f"resident_rows_kernel<Bfloat16, Case::reverse, true>{ROWS}",
        f"streamed_rows_kernel<float, Case::jsd, true>{ROWS}",
        f"streamed_rows_kernel<float, Case::general, true>{ROWS}",
        f"gradient_kernel<float, Case::general>{ROWS}",
        "topk_rows_kernel<float, false, true>(const __grid_constant__ TopkLaunchArgs)",
    ),
    90: source(
        f"resident_rows_kernel<Bfloat16, Case::forward, false>{ROWS}",
        f"resident_rows_kernel<float, Case::forward, true>{ROWS}",
        f"slice_totals_kernel<float, false>{ROWS}",
        f"slice_values_kernel<float, false>{ROWS}",
        f"combine_slices_kernel<false>{ROWS}",
        f"gradient_kernel<Bfloat16, Case::forward>{ROWS}",
        "scale_rows_kernel<Bfloat16>(Rows<void>, const std::uint8_t*, const float*, int, int, int, int)",
        "topk_rows_kernel<Bfloat16, true, false>(const __grid_constant__ TopkLaunchArgs)",
    ),
}


class Case(NamedTuple):
    """Sizes, dtypes and options of a loss, the GPU, and the kernels that run as compiled code."""

    architecture: int
    vocab: int
    dtypes: tuple[torch.dtype, torch.dtype]
    options: dict[str, Any]
    kernels: set[str]
    block_kb: float = 227  # shared memory: less of it needs larger clusters
    rows: int = 5

    def __str__(self) -> str:
        dtypes = "-".join(str(x).removeprefix("torch.") for x in self.dtypes)
        return f"sm_{self.architecture}-V{self.vocab}-{dtypes}-{self.block_kb}KB-{'-'.join(self.options)}"


JSD, REVERSE = {"divergence": "jsd", "beta": 0.3}, {"divergence": "reverse_kl"}
CASES = [
    Case(90, 1003, (BF16, BF16), {"upstream": 3.0}, {"resident_rows_kernel", "scale_rows_kernel"}),
    Case(90, 2003, (BF16, BF16), {"inplace_backward": True}, {"resident_rows_kernel"}, 5),
    Case(90, 1030, (BF16, BF16), {"reduction": "none"}, {"resident_rows_kernel", "gradient_kernel"}),
    Case(90, 16_500, (FP32, FP32), {}, {"slice_totals_kernel", "slice_values_kernel", "combine_slices_kernel"}, rows=1),
    Case(80, 1003, (BF16, BF16), REVERSE, {"resident_rows_kernel"}),
    Case(80, 5001, (FP32, FP32), JSD, {"streamed_rows_kernel"}, 3),
    Case(80, 1003, (FP32, BF16), {"logit_softcap": 5.0}, {"streamed_rows_kernel"}),
    Case(80, 333, (FP32, FP32), {"logit_softcap": 5.0, "reduction": "none"}, {"streamed_rows_kernel", "gradient_kernel"}, 3),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_losses(case, run_cuda):
    executor = run_cuda(KERNELS[case.architecture], case.architecture, case.block_kb)
    student, teacher = (logits(case.rows, case.vocab, dtype) for dtype in case.dtypes)
    exact = truth(student, teacher, IDS[: case.rows], **{k: x for k, x in case.options.items() if k != "inplace_backward"})
    got = run(student, teacher, IDS[: case.rows], CUDA, **case.options)
    assert_close_to_truth(got, exact, case.dtypes[0], operand=10.0 if "divergence" in case.options else 0.5)
    launched = {name for name in case.kernels | {"collect_rows_kernel"} if any(name in x for x in executor.launched)}
    assert launched == case.kernels | {"collect_rows_kernel"}, (executor.launched, executor.emulated)
    assert executor.conditions.steps > 1000


@pytest.mark.parametrize("block_kb", [227, 4.2], ids=["one block", "a cluster"])
def test_stats(block_kb, run_cuda):
    executor = run_cuda(KERNELS[90], 90, block_kb)
    test_span_kl.test_stats(CUDA, 1.0)
    assert any("resident_rows_kernel" in name for name in executor.launched)
    assert (max(executor.clusters) > 1) == (block_kb < 227)


def test_infinite_logits(run_cuda):
    run_cuda(KERNELS[80], 80)
    test_span_kl.test_infinite_logits(CUDA)
    test_span_kl.test_nan_in_nan_out(CUDA, "nan in student")


def test_topk(run_cuda):
    executor = run_cuda(KERNELS[90], 90)
    test_topk_span_kl.test_dtypes(CUDA, BF16, FP32, torch.int64)
    assert any("topk_rows_kernel" in name for name in executor.launched)
    executor.close()
    executor = run_cuda(KERNELS[80], 80)
    test_topk_span_kl.test_stats(CUDA, 1.0, "none")
    assert any("topk_rows_kernel" in name for name in executor.launched)


def test_span_ids(run_cuda):
    executor = run_cuda((CSRC / "cuda" / "span_ids.cu").read_text(), 90)
    offsets = torch.stack([torch.arange(0, 400, 2), torch.arange(2, 402, 2)], dim=-1).expand(3, 200, 2)
    spans = [[Span(0, 5, 1), Span(9, 40, 2)], [], [Span(3, 4, 2), Span(100, 399, 1), Span(399, 400, 3)]]
    got, expected = (span_ids_from_offsets(offsets, spans, backend=x) for x in ("cuda", "reference"))
    assert torch.equal(got, expected)
    assert len(executor.launched) == 1 and not executor.emulated


def test_rows_out_of_phase(run_cuda):
    """The teacher's rows begin one element after the student's, in memory that ends with the last row."""
    executor = run_cuda(KERNELS[80], 80)
    student, teacher = logits(5, 333), torch.empty(5 * 333 + 1)[1:].view(5, 333)
    teacher.copy_(logits(5, 333))
    assert_close_to_truth(run(student, teacher, IDS, CUDA), truth(student, teacher, IDS), FP32)
    assert any("streamed_rows_kernel" in name for name in executor.launched)


CLUSTER_BARRIER = "barrier.cluster.arrive;\n\tbarrier.cluster.wait;"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bar.sync", "mov.u32 %r1, %r1; //", "race"),
        ("cp.async.wait_group 0;", "cp.async.wait_group 1;", "asynchronous copy"),
        ("cp.async.commit_group;", "", "asynchronous copy"),
        (CLUSTER_BARRIER, "bar.sync 0;", "may not have started"),
        (f"{CLUSTER_BARRIER}\n\tret;", "ret;", "may have ended|has ended"),
    ],
)
def test_planted_faults(old, new, message, run_cuda):
    """The student's rows are resident in the shared memory of clusters of four blocks."""
    executor = run_cuda(KERNELS[90], 90, 5)
    student, teacher = logits(5, 2003, BF16), logits(5, 2003, BF16)
    run(student, teacher, IDS, CUDA)
    assert max(executor.clusters) == 4
    assert old in executor.ptx
    executor.ptx = executor.ptx.replace(old, new)
    with pytest.raises(RuntimeError, match=message):
        run(student, teacher, IDS, CUDA)
