"""The executor itself: arithmetic, approximations, and lanes that take different paths."""

from __future__ import annotations

import pytest
import torch

from tests.ptx.encode import encode
from tests.ptx.machine import Conditions, Shape, run
from tests.ptx.parse import parse
from tests.ptx.triton_kernels import allocations, packed

COUNT = 4096


def mapped(code: str, x: torch.Tensor, dtype: torch.dtype, conditions: Conditions | None = None) -> torch.Tensor:
    """Returns y[i] = f(x[i]). The code reads %f1 and writes %f2 (float32) or %h2 (16 bits) or %r2 (int32)."""
    result = {torch.float32: "f32 [%rd6], %f2", torch.int32: "u32 [%rd6], %r2"}.get(dtype, "u16 [%rd6], %h2")
    ptx = f"""
.version 8.5
.target sm_90
.address_size 64
.visible .entry f(.param .u64 x, .param .u64 y)
{{
    .reg .pred %p<4>;
    .reg .b16 %h<4>;
    .reg .f32 %f<8>;
    .reg .b32 %r<16>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    mov.u32 %r10, %ctaid.x;
    mov.u32 %r11, %tid.x;
    mad.lo.s32 %r12, %r10, 128, %r11;
    mul.wide.s32 %rd3, %r12, 4;
    mul.wide.s32 %rd4, %r12, {dtype.itemsize};
    add.s64 %rd5, %rd1, %rd3;
    add.s64 %rd6, %rd2, %rd4;
    ld.global.f32 %f1, [%rd5];
    {code}
    st.global.{result};
    ret;
}}
"""
    y = torch.zeros(len(x), dtype=dtype)
    program = encode(parse(ptx), "f")
    run(program, Shape((len(x) // 128, 1, 1), 128), packed(program, [x, y]), allocations([x, y]), conditions)
    return y


def floats() -> torch.Tensor:
    """Random bits: all magnitudes, subnormals, infinities and NaN."""
    bits = torch.randint(-(2**31), 2**31, (COUNT,), dtype=torch.int64).to(torch.int32)
    bits[:6] = torch.tensor([0, -(2**31), 1, 0x7F800000, -0x800000, 0x7FC00000], dtype=torch.int32)
    half_way = torch.arange(COUNT // 2, dtype=torch.int32) * 0x9E37 + 0x38001000  # between numbers of 16 bits
    bits[COUNT // 2 :] = half_way & ~0xFFF
    return bits.view(torch.float32)


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_conversions_round_to_nearest_even():
    x = floats()
    assert_same(mapped("cvt.rn.bf16.f32 %h2, %f1;", x, torch.bfloat16), x.bfloat16())
    assert_same(mapped("cvt.rn.f16.f32 %h2, %f1;", x, torch.float16), x.half())
    for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
        there_and_back = mapped(f"cvt.rn.{name}.f32 %h1, %f1;\ncvt.f32.{name} %f2, %h1;", x, torch.float32)
        assert_same(there_and_back, x.to(dtype).float())


def test_arithmetic():
    x = torch.randn(COUNT)  # three times x minus 1 is exact in float64
    assert_same(mapped("fma.rn.f32 %f2, %f1, 0f40400000, 0fBF800000;", x, torch.float32), (x.double() * 3 - 1).float())
    x = floats()
    assert_same(mapped("max.f32 %f2, %f1, 0f3F800000;", x, torch.float32), torch.where(x.isnan(), 1.0, x).clamp(min=1.0))
    assert_same(mapped("copysign.f32 %f2, %f1, 0f40000000;", x, torch.float32), torch.copysign(torch.tensor(2.0), x))
    flushed = torch.where(x.abs() < torch.finfo(torch.float32).tiny, torch.copysign(torch.tensor(0.0), x), x)
    assert_same(mapped("mul.ftz.f32 %f2, %f1, 0f3F800000;", x, torch.float32), flushed)
    assert not torch.equal(flushed.nan_to_num(), x.nan_to_num())
    integers = torch.arange(-COUNT // 2, COUNT // 2, dtype=torch.int32)
    x = integers.view(torch.float32)
    divided = mapped("mov.b32 %r1, %f1;\ndiv.s32 %r2, %r1, -7;", x, torch.int32)
    assert_same(divided, torch.div(integers, -7, rounding_mode="trunc"))
    assert_same(mapped("mov.b32 %r1, %f1;\nshr.s32 %r2, %r1, 40;", x, torch.int32), integers >> 31)
    assert_same(mapped("mov.b32 %r1, %f1;\nbfe.s32 %r2, %r1, 2, 1;", x, torch.int32), -((integers >> 2) & 1))


@pytest.mark.parametrize(
    ("instruction", "exact", "low", "high", "bound"),
    [
        ("ex2.approx.ftz.f32", torch.exp2, -100.0, 100.0, 2.5 * 2.0**-23),
        ("lg2.approx.ftz.f32", torch.log2, 2.5, 1e6, 2.0**-22),
        ("rcp.approx.ftz.f32", torch.reciprocal, 0.01, 100.0, 1.5 * 2.0**-23),
        ("tanh.approx.f32", torch.tanh, -4.0, 4.0, 2.0**-10.9),
    ],
)
def test_approximations_err_within_their_bounds(instruction, exact, low, high, bound):
    x = torch.linspace(low, high, COUNT)
    right = exact(x.double())
    results = [mapped(f"{instruction} %f2, %f1;", x, torch.float32, Conditions(noise=seed)) for seed in (0, 1, 1, 2)]
    errors = [((y.double() - right) / right).nan_to_num().abs().max().item() for y in results]
    assert errors[0] < 1.2 * 2.0**-24 and max(errors) <= bound
    assert min(errors[1:]) > bound / 4, "the noise should use most of the bound"
    assert torch.equal(results[1], results[2]) and not torch.equal(results[1], results[3])


def test_lanes_that_take_different_paths_meet_again():
    """Lane i runs a loop i times, and leaves it early or late; then all lanes shuffle, which needs the whole warp."""
    code = """
    mov.u32 %r1, 0;
    mov.u32 %r3, 0;
    setp.eq.s32 %p1, %r11, 0;
    @%p1 bra after;
again:
    add.s32 %r3, %r3, 1;
    and.b32 %r4, %r3, 1;
    setp.eq.s32 %p2, %r4, 0;
    @%p2 bra even;
    add.s32 %r1, %r1, 3;
    bra.uni next;
even:
    add.s32 %r1, %r1, 5;
    setp.ge.s32 %p3, %r1, 100;
    @%p3 bra after;
next:
    setp.lt.s32 %p1, %r3, %r11;
    @%p1 bra again;
after:
    shfl.sync.idx.b32 %r5, %r1, 0, 31, -1;
    add.s32 %r2, %r1, %r5;
"""
    expected = []
    for thread in range(128):
        total = 0
        for i in range(1, thread + 1):
            total += 3 if i % 2 else 5
            if i % 2 == 0 and total >= 100:
                break
        expected.append(total)
    got = mapped(code, torch.zeros(128), torch.int32).tolist()
    assert got == [x + expected[i // 32 * 32] for i, x in enumerate(expected)]
