"""Small kernels in PTX, each of which the planted faults change in one place."""

from __future__ import annotations

import torch

from tests.ptx.encode import encode
from tests.ptx.machine import Conditions, Shape, run
from tests.ptx.parse import parse
from tests.ptx.triton_kernels import allocations, packed

_HEADER = """
.version 8.5
.target sm_90
.address_size 64
.visible .entry kernel(.param .u64 x, .param .u64 y, .param .u32 n) {
    .reg .pred %p<4>;
    .reg .b32 %r<24>;
    .reg .f32 %f<8>;
    .reg .b64 %rd<12>;
    .shared .align 16 .b8 tile[4096];
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %tid.x;
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mad.lo.s32 %r5, %r3, %r4, %r2;
    mov.u32 %r6, tile;
"""

# y[i] = x[n - 1 - i] for one block of n threads, through shared memory
REVERSE = f"""{_HEADER}
    mul.wide.s32 %rd3, %r2, 4;
    add.s64 %rd4, %rd1, %rd3;
    ld.global.f32 %f1, [%rd4];
    shl.b32 %r7, %r2, 2;
    add.s32 %r8, %r6, %r7;
    st.shared.f32 [%r8], %f1;
    bar.sync 0;
    sub.s32 %r9, %r1, %r2;
    add.s32 %r9, %r9, -1;
    shl.b32 %r10, %r9, 2;
    add.s32 %r11, %r6, %r10;
    ld.shared.f32 %f2, [%r11];
    add.s64 %rd5, %rd2, %rd3;
    st.global.f32 [%rd5], %f2;
    ret;
}}
"""

# y = x, 4 floats per thread, with asynchronous copies in two groups
COPY = f"""{_HEADER}
    mul.wide.s32 %rd3, %r5, 16;
    add.s64 %rd4, %rd1, %rd3;
    shl.b32 %r7, %r2, 4;
    add.s32 %r8, %r6, %r7;
    cp.async.ca.shared.global [%r8], [%rd4], 8;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r8+8], [%rd4+8], 8;
    cp.async.commit_group;
    add.s64 %rd5, %rd2, %rd3;
    cp.async.wait_group 1;
    ld.shared.v2.f32 {{%f1, %f2}}, [%r8];
    cp.async.wait_group 0;
    ld.shared.v2.f32 {{%f3, %f4}}, [%r8+8];
    st.global.v4.f32 [%rd5], {{%f1, %f2, %f3, %f4}};
    ret;
}}
"""

# y[i] = x[i of the next block of the cluster], through the shared memory of that block
NEIGHBOR = f"""{_HEADER}
    mul.wide.s32 %rd3, %r5, 4;
    add.s64 %rd4, %rd1, %rd3;
    ld.global.f32 %f1, [%rd4];
    shl.b32 %r7, %r2, 2;
    add.s32 %r8, %r6, %r7;
    st.shared.f32 [%r8], %f1;
    barrier.cluster.arrive;
    barrier.cluster.wait;
    mov.u32 %r9, %cluster_ctarank;
    mov.u32 %r10, %cluster_nctarank;
    add.s32 %r9, %r9, 1;
    rem.u32 %r9, %r9, %r10;
    mapa.shared::cluster.u32 %r11, %r8, %r9;
    ld.shared::cluster.f32 %f2, [%r11];
    add.s64 %rd5, %rd2, %rd3;
    st.global.f32 [%rd5], %f2;
    barrier.cluster.arrive;
    barrier.cluster.wait;
    ret;
}}
"""

# y[i] = sum over the warp of x, for the lanes with i < n; the others store 0
SUM = f"""{_HEADER}
    mul.wide.s32 %rd3, %r5, 4;
    add.s64 %rd4, %rd1, %rd3;
    ld.global.f32 %f1, [%rd4];
    setp.lt.s32 %p1, %r2, %r1;
    mov.f32 %f3, 0f00000000;
    mov.b32 %r12, %f1;
    @!%p1 bra after;
    bar.warp.sync -1;
after:
    shfl.sync.bfly.b32 %r13, %r12, 16, 31, -1;
    mov.b32 %f2, %r13;
    add.f32 %f1, %f1, %f2;
    @%p1 mov.f32 %f3, %f1;
    add.s64 %rd5, %rd2, %rd3;
    st.global.f32 [%rd5], %f3;
    ret;
}}
"""

# Every block writes its number to y, and block 0 also reads the element of block 1; the result is x + 0 times that.
READ_OF_ANOTHER_BLOCK = f"""{_HEADER}
    mul.wide.s32 %rd3, %r3, 4;
    add.s64 %rd5, %rd2, %rd3;
    ld.global.u32 %r7, [%rd2+4];
    setp.eq.s32 %p1, %r3, 0;
    mov.u32 %r8, 0;
    @%p1 selp.b32 %r8, 0, %r7, %p1;
    add.s32 %r9, %r3, %r8;
    st.global.u32 [%rd5], %r9;
    ret;
}}
"""


def launch(ptx: str, x: torch.Tensor, y: torch.Tensor, n: int, shape: Shape, conditions: Conditions | None = None) -> None:
    """Runs a kernel of this module."""
    program = encode(parse(ptx), "kernel")
    run(program, shape, packed(program, [x, y, n]), allocations([x, y]), conditions)
