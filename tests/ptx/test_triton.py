"""The Triton backend as compiled code. The bodies of the tests are those of the other backends.

Approximations have errors within their documented bounds. Architectures and dtypes rotate, because every combination is a
compilation of some seconds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from sad import Span, span_ids_from_offsets
from sadkernels.reference import row_weights as reference_row_weights
from sadkernels.tokens import Tokens
from sadkernels.triton import row_weights
from sadkernels.triton.launch import Launch
from tests.ptx import triton_kernels
from tests.ptx.machine import Fault
from tests.ptx.triton_compiler import Compiled, Request
from tests.sadkernels import test_row_weights, test_span_kl, test_span_kl_divergences, test_topk_span_kl
from tests.sadkernels.conftest import Backend
from tests.sadkernels.span_kl_cases import assert_close_to_truth, logits, run, truth
from tests.sadkernels.triton import test_addresses, test_slices
from tests.sadkernels.triton import test_deferred_rows as deferred_rows

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
IDS = torch.tensor([1, 2, 0, 2, 1])
CPU = torch.device("cpu")
TRITON = Backend("triton", CPU)
JSD = {"divergence": "jsd", "beta": 0.3}
REVERSE = {"divergence": "reverse_kl"}


class Case(NamedTuple):
    """Sizes, dtypes and options of a loss, and the architecture to compile for."""

    architecture: int
    vocab: int
    dtypes: tuple[torch.dtype, torch.dtype]
    options: dict[str, Any]
    kernels: tuple[str, ...] = ()  # that run besides those for the rows' values

    def __str__(self) -> str:
        dtypes = "-".join(str(x).removeprefix("torch.") for x in self.dtypes)
        options = "-".join(f"{key}={value}" for key, value in self.options.items())
        return f"sm_{self.architecture}-V{self.vocab}-{dtypes}-{options}"


BACKWARD, SCALE = "span_kl_backward_kernel", "scale_rows_kernel"
CASES = [
    Case(80, 1003, (BF16, BF16), {}),
    Case(90, 1030, (BF16, BF16), {"temperature": 0.8, "upstream": 3.0}, (SCALE,)),
    Case(80, 333, (FP32, FP32), {"inplace_backward": True, "upstream": -0.5}, (SCALE,)),
    Case(90, 4099, (FP32, FP32), {"reduction": "none"}, (BACKWARD,)),
    Case(80, 517, (FP16, FP16), {"reduction": "none", "temperature": 1.5}, (BACKWARD,)),
    Case(90, 517, (BF16, FP32), {"logit_softcap": 5.0}),
    Case(80, 517, (FP32, BF16), {"inplace_backward": True, "logit_scale": 0.4}),
    Case(80, 1030, (BF16, BF16), REVERSE),
    Case(90, 2049, (FP32, FP32), REVERSE | {"inplace_backward": True}),
    Case(80, 333, (FP16, FP16), JSD | {"inplace_backward": True}, (BACKWARD,)),
    Case(90, 1003, (FP32, FP32), JSD | {"logit_softcap": (4.0, None)}),
    Case(80, 257, (FP32, FP32), JSD | {"reduction": "none"}, (BACKWARD,)),
    Case(90, 17_000, (FP32, FP32), {}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_losses(case, run_triton):
    executor = run_triton(case.architecture)
    student, teacher = (logits(5, case.vocab, dtype) for dtype in case.dtypes)
    exact = truth(student, teacher, IDS, **{key: x for key, x in case.options.items() if key != "inplace_backward"})
    got = run(student, teacher, IDS, TRITON, **case.options)
    assert_close_to_truth(got, exact, case.dtypes[0], operand=10.0 if "divergence" in case.options else 0.5)
    expected = {"row_weights_kernel", "collect_rows_kernel", "span_kl_kernel", "row_sums_kernel", *case.kernels}
    assert set(executor.launched) == expected and executor.conditions.steps > 1000


def test_slices_have_the_same_bits_in_any_order_of_the_blocks(run_triton, conditions):
    executor = run_triton(80)
    student, teacher = logits(1, 17_000), logits(1, 17_000)
    results = []
    for conditions.order in (0, 1):
        results.append(run(student, teacher, IDS[:1], TRITON))
    assert {"slice_totals_kernel", "slice_values_kernel", "combine_slices_kernel"} <= set(executor.launched)
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert_close_to_truth(results[0], truth(student, teacher, IDS[:1]), FP32)


def test_stats(run_triton):
    run_triton(80)
    test_span_kl.test_stats(TRITON, 1.0)
    run_triton(90)
    test_span_kl_divergences.test_stats(TRITON, JSD)


def test_infinite_logits(run_triton):
    run_triton(80)
    test_span_kl.test_infinite_logits(TRITON)
    test_span_kl.test_nan_in_nan_out(TRITON, "nan in teacher")
    test_span_kl_divergences.test_infinite_logits(TRITON, test_span_kl_divergences.JSD)


def test_logits_far_from_zero(run_triton):
    run_triton(90)
    test_span_kl.test_logits_far_from_zero(TRITON, -(2.0**120))
    test_span_kl.test_leading_block_of_minus_infinity(TRITON)


@pytest.mark.parametrize(("name", "architecture"), [("reverse_kl", 90), ("jsd", 80)])
def test_slices_match_whole_rows(name, architecture, run_triton, monkeypatch):
    run_triton(architecture)
    test_slices.test_slices_match_whole_rows_and_repeat_bit_for_bit(test_slices.CONFIGS[name], CPU, monkeypatch)


def test_results_of_vocabulary_shards_add_up(run_triton, monkeypatch):
    run_triton(90)
    test_slices.test_results_of_vocabulary_shards_add_up(test_slices.CONFIGS["forward_kl"], None, CPU, monkeypatch)


def test_deferred_rows(run_triton, monkeypatch):
    run_triton(80)
    deferred_rows.test_deferred_rows_have_the_bits_of_the_passes_for_any_values("forward_kl", False, CPU, monkeypatch)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("architecture", "vocab", "dtypes", "offsets", "gaps", "divergence", "slice_columns"),
    [
        (80, 9, (FP32, FP32), (2, 3), (4, 1), 4, None),  # the teacher's phase differs from the student's
        (90, 515, (BF16, BF16), (7, 7), (1, 1), 0, None),  # every row begins elsewhere
        (90, 23, (BF16, FP32), (5, 5), (3, 3), 4, 8),  # slices of edges only; neighbours share a group of 8
    ],
)
def test_rows_at_any_address(
    architecture, vocab, dtypes, offsets, gaps, divergence, slice_columns, in_place, run_triton, monkeypatch
):
    run_triton(architecture)
    test_addresses.test_rows_in_a_guarded_buffer(
        vocab, dtypes, offsets, gaps, divergence, slice_columns, in_place, CPU, monkeypatch
    )


def test_topk(run_triton):
    run_triton(80)
    test_topk_span_kl.test_sizes(TRITON, 257, 64, "bucket")
    test_topk_span_kl.test_stats(TRITON, 1.0, "mean")
    test_topk_span_kl.test_stats(TRITON, 1.0, "none")  # also the backward pass alone
    run_triton(90)
    test_topk_span_kl.test_dtypes(TRITON, BF16, FP32, torch.int64)
    test_topk_span_kl.test_cross_entropy(TRITON, 300, "mean")


@pytest.mark.parametrize("architecture", [80, 90])
def test_row_weights_and_sums(architecture, run_triton):
    executor = run_triton(architecture)
    weights = torch.rand(2, 9)
    for reduction, token_weights in (("mean", None), ("span_mean", weights), ("none", weights)):
        tokens = Tokens(torch.arange(18).view(2, 9) % 5, token_weights)
        arguments = (tokens, (0.3, 0.7, 0.1), reduction, True, False, torch.float32)
        for got, expected in zip(row_weights.row_weights(*arguments), reference_row_weights.row_weights(*arguments)):
            torch.testing.assert_close(got, expected, rtol=3e-7, atol=0)
    test_row_weights.test_sums(5000, True)
    assert set(executor.launched) == {"row_weights_kernel", "row_sums_kernel"}


@pytest.mark.parametrize("architecture", [80, 90])
def test_span_ids(architecture, run_triton):
    executor = run_triton(architecture)
    offsets = torch.stack([torch.arange(0, 400, 2), torch.arange(2, 402, 2)], dim=-1).expand(3, 200, 2)
    spans = [[Span(0, 5, 1), Span(9, 40, 2)], [], [Span(3, 4, 2), Span(100, 399, 1), Span(399, 400, 3)]]
    for masks in (False, True):
        got, expected = (span_ids_from_offsets(offsets, spans, masks=masks, backend=x) for x in ("triton", "reference"))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert set(executor.launched) == {"span_ids_kernel"}


def planted(monkeypatch, **values: Any) -> None:
    """Gives launches of `span_kl_kernel` false arguments."""
    launched = Launch.run

    def run(launch: Launch, device: torch.device) -> None:
        if launch.kernel.fn.__name__ == "span_kl_kernel":
            launch = launch._replace(values=launch.values | values)
        launched(launch, device)

    monkeypatch.setattr(Launch, "run", run)


def test_a_false_alignment_is_found(run_triton, monkeypatch):
    """The teacher's rows begin one element after the student's, and the launch says that they do not."""
    run_triton(80)
    student, teacher = logits(5, 333), torch.empty(5 * 333 + 1)[1:].view(5, 333)
    teacher.copy_(logits(5, 333))
    run(student, teacher, IDS, TRITON)
    planted(monkeypatch, TEACHER_ALIGNED=True)
    with pytest.raises(Fault, match="misaligned: an access of 16 bytes"):
        run(student, teacher, IDS, TRITON)


def test_a_column_too_many_is_found(run_triton, monkeypatch):
    run_triton(80)
    student, teacher = logits(5, 336), logits(5, 336)
    planted(monkeypatch, vocab_size=337, grad_columns=337)
    with pytest.raises(Fault, match=r"out of bounds: a read|race"):
        run(student, teacher, IDS, TRITON)


def without(text: str, index: int, made: Compiled) -> Compiled:
    """Returns compiled code without its statement number `index` that begins with a text."""
    parts = made.ptx.split(text)
    before, after = text.join(parts[: index + 1]), parts[index + 1].partition(";")[2]
    return made._replace(ptx=text.join([before + after, *parts[index + 2 :]]))


@pytest.mark.parametrize(
    ("kernel", "needed"),
    [
        ("row_weights_kernel", 11),  # all
        ("span_kl_kernel", 10),  # the others are in the pass for large exponents, which does not run
    ],
)
def test_every_missing_barrier_is_found(kernel, needed, run_triton, monkeypatch):
    run_triton(80)
    student, teacher = logits(5, 333), logits(5, 333)
    compiled, barriers = triton_kernels.compiled, []

    def edited(request: Request) -> Compiled:
        made = compiled(request)
        if made.name != kernel:
            return made
        barriers.append(made.ptx.count("bar.sync"))
        return without("bar.sync", index, made)

    monkeypatch.setattr(triton_kernels, "compiled", edited)
    index, found = 0, 0
    while index < max(barriers, default=1):
        try:
            run(student, teacher, IDS, TRITON)
        except Fault as fault:
            assert str(fault).startswith("race: the thread")
            found += 1
        index += 1
    assert found == needed
