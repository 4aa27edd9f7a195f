"""Rows at any address: nothing outside them is read or written, and every column of them is."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sadkernels.reference import span_kl as reference
from sadkernels.rows import row_layout
from sadkernels.triton import span_kl
from sadkernels.triton.row_io import cut_row
from sadkernels.triton.span_kl import _same_phase
from sadkernels.triton.tiles import one_pass_tile, two_pass_tile

KINDS = torch.tensor([1, 0, 2], dtype=torch.uint8)
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


def rows_within(values: Tensor, offset: int, gap: int, guard: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """`values` (N, V) as a view into a buffer of `guard`, `offset` elements into it and `gap` between rows; both."""
    n, v = values.shape
    buffer = torch.full((offset + n * (v + gap) + 16,), guard, dtype=values.dtype, device=device)
    rows = buffer.as_strided((n, v), (v + gap, 1), offset)
    rows.copy_(values)
    return buffer, rows


def assert_only_rows_written(buffer: Tensor, rows: Tensor, guard: float) -> None:
    inside = torch.zeros(buffer.shape, dtype=torch.bool, device=buffer.device)
    inside.as_strided(rows.shape, rows.stride(), rows.storage_offset()).fill_(True)
    assert (buffer[~inside] == guard).all()


def assert_gradient(grad: Tensor, exact: Tensor) -> None:
    tolerance = torch.finfo(grad.dtype).eps / 2 + 1e-6  # one rounding, on a difference of two probabilities
    torch.testing.assert_close(grad.double().cpu(), exact, rtol=tolerance, atol=1e-6)


SHORT, LONG = one_pass_tile(1, BF16).columns, one_pass_tile(10**6, BF16).columns


@pytest.mark.parametrize(
    "vocab, dtypes, offsets, gaps",
    [
        (1, (BF16, BF16), (0, 0), (0, 0)),  # all edge; the next row two bytes on
        (7, (BF16, BF16), (3, 3), (0, 0)),  # no whole group anywhere
        (8, (FP16, FP16), (0, 0), (0, 0)),  # exactly one group
        (8, (BF16, BF16), (1, 1), (0, 0)),  # one group's worth, but none aligned
        (9, (FP32, FP32), (2, 3), (4, 1)),  # the teacher out of step with the student
        (23, (BF16, FP32), (5, 5), (3, 3)),  # groups of 8 in both, 32 bytes wide in the teacher
        (24, (FP32, BF16), (8, 1), (1, 0)),
        (SHORT - 1, (BF16, BF16), (0, 0), (0, 0)),
        (SHORT, (FP16, BF16), (8, 8), (8, 8)),  # a block exactly, every row aligned
        (SHORT, (BF16, BF16), (7, 7), (1, 1)),  # a block's worth in one group less and two edges
        (SHORT + 1, (BF16, BF16), (0, 4), (7, 5)),
        (LONG + 1, (BF16, BF16), (0, 0), (0, 0)),  # the wide tile; two blocks
        (2 * LONG + 15, (BF16, BF16), (1, 0), (0, 1)),
    ],
    ids=lambda x: str(x).replace("torch.", ""),
)
@pytest.mark.parametrize("in_place", [False, True], ids=["own gradient", "in place"])
def test_rows_in_a_guarded_buffer(vocab, dtypes, offsets, gaps, in_place, device):
    """NaN around the logits would be seen in the KL; a sentinel around the gradient shows every stray write."""
    student, teacher = (4 * torch.randn(3, vocab, dtype=torch.float64) for _ in range(2))
    student, teacher = student.to(dtypes[0]), teacher.to(dtypes[1])
    student[1], teacher[1] = torch.nan, torch.nan  # a row that is not read
    weights = torch.tensor([0.7, 1.0, -1.9])
    options = {"vocab_size": vocab, "temperature": 1.3}

    exact_kl, exact_lse, exact_extras = reference.forward(student.double(), teacher.double(), KINDS, stats=True, **options)
    exact_grad = torch.empty(3, vocab, dtype=torch.float64)
    lse_args = (KINDS, exact_lse, weights.double())
    reference.backward(student.double(), teacher.double(), *lse_args, grad=exact_grad, **options)

    def fresh() -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
        buffer, s = rows_within(student, offsets[0], gaps[0], torch.nan, device)
        _, t = rows_within(teacher, offsets[1], gaps[1], torch.nan, device)
        if in_place:
            buffer[buffer.isnan()] = guard = 77.0
            s[1] = torch.nan
            return buffer, s, t, s, guard
        guard = -5.0
        buffer, grad = rows_within(torch.full_like(student, torch.nan), offsets[0] + 1, gaps[1], guard, device)
        return buffer, s, t, grad, guard

    kinds, weights = KINDS.to(device), weights.to(device)
    buffer, s, t, grad, guard = fresh()
    kl, lse, extras = span_kl.forward(s, t, kinds, stats=True, **options)
    torch.testing.assert_close(kl.double().cpu(), exact_kl, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(lse.double().cpu(), exact_lse, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(extras.double().cpu(), exact_extras, rtol=2e-6, atol=2e-7)

    span_kl.backward(s, t, kinds, lse, weights, grad=grad, **options)
    assert_gradient(grad, exact_grad)
    assert_only_rows_written(buffer, grad, guard)

    buffer, s, t, grad, guard = fresh()
    kl_again, _ = span_kl.forward_backward(s, t, kinds, weights, stats=False, grad=grad, **options)
    assert torch.equal(kl_again, kl)
    assert_gradient(grad, exact_grad)
    assert_only_rows_written(buffer, grad, guard)

    before = grad.clone()
    span_kl.scale(grad, kinds, torch.tensor(-3.0, device=device))
    expected = torch.where(kinds[:, None] != 0, before.float() * -3.0, before.float()).to(grad.dtype)
    assert torch.equal(grad, expected)
    assert_only_rows_written(buffer, grad, guard)


@pytest.mark.parametrize("vocab, student_columns", [(5, 21), (SHORT - 3, SHORT + 30)])
def test_columns_beyond_the_vocabulary_get_zeros_and_weight_0_rows_too(vocab, student_columns, device):
    student, teacher = torch.randn(3, student_columns, dtype=BF16), torch.randn(3, vocab + 3, dtype=BF16)
    student[:, vocab:], teacher[:, vocab:] = torch.nan, torch.nan
    weights = torch.tensor([1.0, 1.0, 0.0])
    student[2, vocab // 2] = torch.nan  # NaN in a row of weight 0 stays out of its gradient
    grad = torch.full_like(student, torch.nan, device=device)
    options = {"vocab_size": vocab, "temperature": 1.0}
    tensors = (student.to(device), teacher.to(device), KINDS.to(device), weights.to(device))
    kl, _ = span_kl.forward_backward(*tensors, stats=False, grad=grad, **options)
    assert kl[0] > 0 and kl[1] == 0 and kl[2].isnan()
    assert (grad[0, :vocab] != 0).any() and (grad[0, vocab:] == 0).all() and (grad[1:] == 0).all()


def test_scale_leaves_rows_alone_when_the_factor_is_1(device):
    """A signalling NaN shows it: any multiplication, by 1 too, turns it into a quiet one."""
    signalling = 0x7F800001
    bits = torch.full((3, 9), signalling, dtype=torch.int32, device=device)
    for factor, left in ((1.0, True), (2.0, False)):
        grad = bits.clone()
        span_kl.scale(grad.view(FP32), KINDS.to(device), torch.tensor(factor, device=device))
        assert torch.equal(grad[0], bits[0]) == left
        assert torch.equal(grad[1], bits[1])  # of kind 0


@triton.jit
def _cut_kernel(x, heads, groups, stride, columns, GROUP: tl.constexpr):
    row = tl.program_id(0)
    head, count, _, _ = cut_row(x + row * stride, columns, GROUP)
    tl.store(heads + row, head)
    tl.store(groups + row, count)


@pytest.mark.parametrize("dtype, group", [(BF16, 8), (FP32, 4), (FP32, 8)], ids=str)
def test_groups_begin_at_aligned_addresses(dtype, group, device):
    """The kernels promise the compiler 16-byte addresses; an interpreter would not notice a broken promise."""
    n, columns = 9, 40
    for offset in (0, 3):
        x = torch.zeros(offset + n * 41 + 16, dtype=dtype, device=device)[offset:]
        heads, groups = (torch.zeros(n, dtype=torch.int32, device=device) for _ in range(2))
        _cut_kernel[(n,)](x, heads, groups, 41, columns, GROUP=group)
        for row, head, count in zip(range(n), heads.tolist(), groups.tolist()):
            assert (x.data_ptr() + (row * 41 + head) * x.element_size()) % (group * x.element_size()) == 0
            assert 0 <= head < group and 0 <= columns - head - group * count < group


shapes = st.tuples(st.integers(1, 3), st.integers(1, 3))
tensors = st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))


@settings(deadline=None, max_examples=300)
@given(shapes, tensors, tensors, st.integers(1, 20), st.sampled_from([4, 8]))
def test_same_phase_holds_for_every_row(shape, one, other, vocab, group):
    """`_same_phase` may miss tensors that agree, but must not claim it of tensors that do not."""

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
    if _same_phase(x, y, group):
        assert phases(x) == phases(y)
    assert _same_phase(x, x, group)


def test_rows_at_the_same_phase_are_recognised():
    """Odd contiguous rows, whose teacher may be padded to another multiple of the group, and a slice of both."""
    student, teacher = torch.empty(2, 5, 57), torch.empty(2, 5, 57)
    assert _same_phase(student, teacher, 4) and _same_phase(student[:, 1:], teacher[:, 1:], 4)
    assert _same_phase(torch.empty(2, 5, 64), torch.empty(2, 5, 72), 8)
    assert not _same_phase(student, torch.empty(2, 5, 60), 4)


def test_the_tile_follows_row_length_and_cache(monkeypatch):
    """Figures of an A6000 (84 SMs, 6 MB) and an H200 (132, 60 MB): two bfloat16 rows of 50257 columns are 201 KB."""
    from sadkernels.triton import tiles

    cuda = torch.device("cuda")
    monkeypatch.setattr(tiles, "_processors_and_l2", lambda device: (84, 6 << 20))
    assert two_pass_tile(50257, BF16, BF16, False, cuda).warps == 32
    assert two_pass_tile(8192, BF16, BF16, False, cuda).warps == 16
    monkeypatch.setattr(tiles, "_processors_and_l2", lambda device: (132, 60 << 20))
    assert two_pass_tile(50257, BF16, BF16, False, cuda).warps == 16
    assert two_pass_tile(151936, BF16, BF16, False, cuda).warps == 32
    assert two_pass_tile(1000, BF16, BF16, False, cuda).warps == 4
