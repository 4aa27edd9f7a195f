"""Rows at any address: the kernels read and write every column, and nothing outside the rows."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sadkernels.divergence import DivergenceConfig
from sadkernels.reference import span_kl as reference
from sadkernels.row_layout import row_layout
from sadkernels.triton import span_kl, tiles
from sadkernels.triton.launch import same_phase
from sadkernels.triton.row_io import split_row
from tests.sadkernels.triton.row_helpers import (
    assert_gradient,
    assert_only_rows_written,
    assert_values,
    rows_within,
    split_rows_into,
)

KINDS = torch.tensor([1, 0, 2, 0, 2], dtype=torch.uint8)  # more supervised rows than the interpreter has programs
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16

SHORT, LONG = (x.columns for x in tiles.two_pass_tiles(BF16, BF16, fits_64_registers=False).values())
DIVERGENCE_OPTIONS = [
    {"divergence": "forward_kl"},
    {"divergence": "reverse_kl", "student_scale": 0.5},
    {"divergence": "jsd", "beta": 0.3},
    {"divergence": "forward_kl", "student_softcap": 5.0, "teacher_scale": 2.0},
    {"divergence": "jsd", "beta": 0.9, "student_softcap": 9.0, "teacher_softcap": 3.0, "student_scale": 1.5},
]


@pytest.mark.parametrize(
    "vocab, dtypes, offsets, gaps, divergence, slice_columns",
    [
        (1, (BF16, BF16), (0, 0), (0, 0), 4, None),  # only an edge; the next row starts two bytes later
        (7, (BF16, BF16), (3, 3), (0, 0), 2, None),  # no whole group anywhere
        (8, (FP16, FP16), (0, 0), (0, 0), 1, None),  # exactly one group
        (8, (BF16, BF16), (1, 1), (0, 0), 0, None),  # as many columns as a group, but none aligned
        (9, (FP32, FP32), (2, 3), (4, 1), 4, None),  # the teacher's phase differs from the student's
        (23, (BF16, FP32), (5, 5), (3, 3), 3, None),  # groups of 8 columns, 32 bytes wide in the teacher
        (24, (FP32, BF16), (8, 1), (1, 0), 2, None),
        (SHORT - 1, (BF16, BF16), (0, 0), (0, 0), 1, None),
        (SHORT, (FP16, BF16), (8, 8), (8, 8), 0, None),  # exactly one block; every row is aligned
        (SHORT, (BF16, BF16), (7, 7), (1, 1), 4, None),  # as many columns as a block, but one group is two edges
        (SHORT + 1, (BF16, BF16), (0, 4), (7, 5), 3, None),
        (LONG + 1, (BF16, BF16), (0, 0), (0, 0), 0, None),  # the wide tile; two blocks
        (2 * LONG + 15, (BF16, BF16), (1, 0), (0, 1), 2, None),
        (23, (BF16, FP32), (5, 5), (3, 3), 4, 8),  # slices of edges only; neighbours share a group of 8
        (20, (FP32, FP32), (1, 3), (2, 0), 0, 8),
        (LONG + 9, (BF16, BF16), (3, 4), (2, 0), 1, LONG),  # the last slice is shorter than two groups
    ],
    ids=lambda x: str(x).replace("torch.", ""),
)
@pytest.mark.parametrize("in_place", [False, True], ids=["own gradient", "in place"])
def test_rows_in_a_guarded_buffer(vocab, dtypes, offsets, gaps, divergence, slice_columns, in_place, device, monkeypatch):
    """The buffer holds NaN around the logits, which would reach the value, and a guard value around the gradient."""
    if slice_columns:
        split_rows_into(monkeypatch, slice_columns)
    student, teacher = (4 * torch.randn(5, vocab, dtype=torch.float64) for _ in range(2))
    student, teacher = student.to(dtypes[0]), teacher.to(dtypes[1])
    student[KINDS == 0], teacher[KINDS == 0] = torch.nan, torch.nan  # rows that the kernels must not read
    weights = torch.tensor([0.7, 1.0, -1.9, 1.0, 0.2])
    config = DivergenceConfig(vocab, 1.3, **DIVERGENCE_OPTIONS[divergence])

    exact = reference.forward(student.double(), teacher.double(), KINDS, config, stats=True)
    exact_grad = torch.empty(5, vocab, dtype=torch.float64)
    reference.backward(student.double(), teacher.double(), KINDS, exact.state, weights.double(), config, grad=exact_grad)

    def fresh() -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        buffer, s = rows_within(student, offsets[0], gaps[0], torch.nan, device)
        _, t = rows_within(teacher, offsets[1], gaps[1], torch.nan, device)
        if in_place:
            buffer[buffer.isnan()] = guard = 77.0
            s[KINDS == 0] = torch.nan
            return buffer, s, t, s, guard
        guard = -5.0
        buffer, grad = rows_within(torch.full_like(student, torch.nan), offsets[0] + 1, gaps[1], guard, device)
        return buffer, s, t, grad, guard

    kinds, weights = KINDS.to(device), weights.to(device)
    buffer, s, t, grad, guard = fresh()
    values = span_kl.forward(s, t, kinds, config, stats=True)
    assert_values(values, exact, config)

    span_kl.backward(s, t, kinds, values.state, weights, config, grad=grad)
    assert_gradient(grad, exact_grad)
    assert_only_rows_written(buffer, grad, guard)

    buffer, s, t, grad, guard = fresh()
    again = span_kl.forward_backward(s, t, kinds, weights, config, stats=False, grad=grad)
    torch.testing.assert_close(again.value.double().cpu(), exact.value, rtol=2e-6, atol=1e-7)
    assert_gradient(grad, exact_grad)
    assert_only_rows_written(buffer, grad, guard)

    before = grad.clone()
    span_kl.scale(grad, kinds, torch.tensor(-3.0, device=device))
    expected = torch.where(kinds[:, None] != 0, before.float() * -3.0, before.float()).to(grad.dtype)
    assert torch.equal(grad, expected)
    assert_only_rows_written(buffer, grad, guard)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("vocab, student_columns", [(5, 21), (SHORT - 3, SHORT + 30)])
@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "sliced"])
def test_gradient_is_zero_beyond_the_vocabulary_and_on_rows_of_weight_0(
    sliced, vocab, student_columns, divergence, device, monkeypatch
):
    if sliced:
        split_rows_into(monkeypatch, 8 if vocab < 64 else 512)
    student, teacher = torch.randn(5, student_columns, dtype=BF16), torch.randn(5, vocab + 3, dtype=BF16)
    student[:, vocab:], teacher[:, vocab:] = torch.nan, torch.nan
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    student[2, vocab // 2] = torch.nan  # NaN in a row of weight 0 must not reach the gradient
    tensors = (student.to(device), teacher.to(device), KINDS.to(device))
    config = DivergenceConfig(vocab, divergence=divergence)
    for fused in (True, False):
        grad = torch.full_like(student, torch.nan, device=device)
        if fused:
            value = span_kl.forward_backward(*tensors, weights.to(device), config, stats=False, grad=grad).value
        else:
            value, state, *_ = span_kl.forward(*tensors, config, stats=False)
            span_kl.backward(*tensors, state, weights.to(device), config, grad=grad)
        assert value[0] > 0 and value[1] == 0 and value[2].isnan() and value[3] == 0 and value[4] > 0
        for row in (0, 4):
            assert (grad[row, :vocab] != 0).any() and (grad[row, vocab:] == 0).all()
        assert (grad[1:4] == 0).all()


def test_scale_by_1_writes_nothing(device):
    """A multiplication turns a signalling NaN into a quiet one, even a multiplication by 1."""
    signalling = 0x7F800001
    bits = torch.full((5, 9), signalling, dtype=torch.int32, device=device)
    for factor, unchanged in ((1.0, True), (2.0, False)):
        grad = bits.clone()
        span_kl.scale(grad.view(FP32), KINDS.to(device), torch.tensor(factor, device=device))
        assert torch.equal(grad[0], bits[0]) == unchanged
        assert torch.equal(grad[1], bits[1])  # kind 0


@triton.jit
def _split_kernel(x, heads, groups, stride, columns, GROUP: tl.constexpr):
    row = tl.program_id(0)
    parts = split_row(x + row * stride, columns, GROUP)
    tl.store(heads + row, parts.head)
    tl.store(groups + row, parts.n_groups)


@pytest.mark.parametrize("dtype, group", [(BF16, 8), (FP32, 4), (FP32, 8)], ids=str)
def test_groups_start_at_aligned_addresses(dtype, group, device):
    """The kernels tell the compiler that addresses are multiples of 16 bytes. The interpreter does not check that."""
    n, columns = 9, 40
    for offset in (0, 3):
        x = torch.zeros(offset + n * 41 + 16, dtype=dtype, device=device)[offset:]
        heads, groups = (torch.zeros(n, dtype=torch.int32, device=device) for _ in range(2))
        _split_kernel[(n,)](x, heads, groups, 41, columns, GROUP=group)
        for row, head, count in zip(range(n), heads.tolist(), groups.tolist()):
            assert (x.data_ptr() + (row * 41 + head) * x.element_size()) % (group * x.element_size()) == 0
            assert 0 <= head < group and 0 <= columns - head - group * count < group


shapes = st.tuples(st.integers(1, 3), st.integers(1, 3))
tensors = st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))


@settings(deadline=None, max_examples=300)
@given(shapes, tensors, tensors, st.integers(1, 20), st.sampled_from([4, 8]))
def test_same_phase_holds_for_every_row(shape, one, other, vocab, group):
    """`same_phase` may return False for equal phases, but must never return True for different ones."""

    def build(transposed: bool, offset: int, gap: int, outer_gap: int) -> Tensor:
        a, b = shape
        buffer = torch.empty(4000, dtype=BF16)
        inner = vocab + gap
        strides = (inner, a * inner + outer_gap) if transposed else (b * inner + outer_gap, inner)
        return buffer.as_strided((a, b, vocab), (*strides, 1), offset)

    def phases(x: Tensor) -> list[int]:
        inner, outer_stride, inner_stride = row_layout(x)
        n = x.shape[0] * x.shape[1]
        starts = [(i // inner) * outer_stride + (i % inner) * inner_stride for i in range(n)]
        return [(x.data_ptr() // x.element_size() + start) % group for start in starts]

    x, y = build(*one), build(*other)
    if same_phase(x, y, group):
        assert phases(x) == phases(y)
    assert same_phase(x, x, group)


def test_same_phase_of_common_layouts():
    """Contiguous rows of odd length, slices of them, and a teacher padded to another multiple of the group."""
    student, teacher = torch.empty(2, 5, 57), torch.empty(2, 5, 57)
    assert same_phase(student, teacher, 4) and same_phase(student[:, 1:], teacher[:, 1:], 4)
    assert same_phase(torch.empty(2, 5, 64), torch.empty(2, 5, 72), 8)
    assert not same_phase(student, torch.empty(2, 5, 60), 4)
