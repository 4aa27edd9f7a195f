"""Each planted fault must be found, and the same kernel without it must run."""

from __future__ import annotations

import pytest
import torch

from tests.ptx import kernels
from tests.ptx.machine import Conditions, Fault, Shape
from tests.ptx.parse import PtxError

ONE_BLOCK = Shape((1, 1, 1), 64)
CLUSTER = Shape((4, 1, 1), 32, cluster=2)


def edited(ptx: str, old: str, new: str = "") -> str:
    assert ptx.count(old) >= 1, f"the kernel has no {old!r}"
    return ptx.replace(old, new, 1)


def last_edited(ptx: str, old: str, new: str = "") -> str:
    head, _, tail = ptx.rpartition(old)
    assert head, f"the kernel has no {old!r}"
    return head + new + tail


def test_the_kernels_without_faults_are_right():
    x = torch.randn(64)
    y = torch.empty(64)
    kernels.launch(kernels.REVERSE, x, y, 64, ONE_BLOCK)
    assert torch.equal(y, x.flip(0))
    x, y = torch.randn(256), torch.empty(256)
    kernels.launch(kernels.COPY, x, y, 64, ONE_BLOCK)
    assert torch.equal(y, x)
    x, y = torch.randn(4, 32), torch.empty(4, 32)
    kernels.launch(kernels.NEIGHBOR, x, y, 64, CLUSTER)
    assert torch.equal(y, x[[1, 0, 3, 2]])
    x, y = torch.randn(32), torch.empty(32)
    kernels.launch(kernels.SUM, x, y, 32, Shape((1, 1, 1), 32))
    assert torch.equal(y, x + x.roll(16))


@pytest.mark.parametrize(
    ("ptx", "message"),
    [
        pytest.param(edited(kernels.REVERSE, "bar.sync 0;"), "nothing has written", id="a barrier less"),
        pytest.param(
            edited(kernels.REVERSE, "bar.sync 0;", "bar.sync 0;\nst.shared.f32 [%r8], %f1;\nst.shared.f32 [%r8], %f3;"),
            "race",
            id="a barrier too early",
        ),
        pytest.param(edited(kernels.REVERSE, "[%rd5], %f2", "[%rd5+4], %f2"), "out of bounds", id="a store too far"),
        pytest.param(edited(kernels.REVERSE, "[%rd4];", "[%rd4+-4];"), "out of bounds", id="a load too early"),
        pytest.param(edited(kernels.REVERSE, "[%rd4];", "[%rd4+4];"), "out of bounds", id="a load too far"),
        pytest.param(edited(kernels.REVERSE, "[%r11];", "[%r11+3900];"), "out of bounds", id="shared memory too far"),
        pytest.param(
            edited(kernels.REVERSE, "[%r11];", "[%r11+1024];"), "nothing has written", id="shared memory unwritten"
        ),
        pytest.param(
            edited(edited(kernels.REVERSE, "ld.global.f32 %f1", "ld.global.v2.f32 {%f1, %f3}"), "[%rd4];", "[%rd4+4];"),
            "misaligned",
            id="a wide load",
        ),
        pytest.param(
            edited(kernels.REVERSE, "bar.sync 0;", "setp.lt.s32 %p1, %r2, 48;\n@%p1 bar.sync 0;"),
            "a part of the warp",
            id="a guarded barrier",
        ),
        pytest.param(
            edited(kernels.REVERSE, "bar.sync 0;", "setp.lt.s32 %p1, %r2, 32;\n@%p1 bra done;\nbar.sync 0;\ndone:"),
            "nothing has written",
            id="a barrier of one warp",
        ),
        pytest.param(edited(kernels.REVERSE, "bar.sync 0;", "trap;"), "trap", id="a trap"),
        pytest.param(edited(kernels.REVERSE, "bar.sync 0;", "again:\nbra again;"), "does not end", id="an endless loop"),
        pytest.param(
            edited(kernels.REVERSE, "[%rd5], %f2", "[%rd2], %f2"), "race", id="threads store different values at one address"
        ),
    ],
)
def test_one_block(ptx, message, monkeypatch):
    monkeypatch.setattr("tests.ptx.machine.MOST_STEPS", 10_000)
    with pytest.raises(Fault, match=message):
        kernels.launch(ptx, torch.randn(64), torch.empty(64), 64, ONE_BLOCK)


@pytest.mark.parametrize(
    ("ptx", "message"),
    [
        pytest.param(edited(kernels.COPY, "cp.async.wait_group 0;"), "waited for", id="no wait"),
        pytest.param(edited(kernels.COPY, "wait_group 0", "wait_group 1"), "waited for", id="a wait too few"),
        pytest.param(edited(kernels.COPY, "cp.async.commit_group;"), "waited for", id="one group"),
        pytest.param(last_edited(kernels.COPY, "cp.async.commit_group;"), "waited for", id="an uncommitted copy"),
        pytest.param(edited(kernels.COPY, "[%rd4], 8", "[%rd4+4], 8"), "misaligned", id="a source"),
        pytest.param(edited(kernels.COPY, "[%rd4+8], 8", "[%rd4+24], 8"), "out of bounds", id="a source too far"),
        pytest.param(edited(kernels.COPY, "[%r8+8], [", "[%r8], ["), "two asynchronous copies", id="two copies"),
        pytest.param(
            edited(kernels.COPY, "add.s64 %rd5", "st.shared.f32 [%r8], 0f00000000;\nadd.s64 %rd5"), "during", id="a store"
        ),
        pytest.param(
            edited(kernels.COPY, "add.s64 %rd5", "st.global.f32 [%rd4], 0f40490FDB;\nadd.s64 %rd5"),
            "source",
            id="its source",
        ),
    ],
)
def test_asynchronous_copies(ptx, message):
    with pytest.raises(Fault, match=message):
        kernels.launch(ptx, torch.randn(256), torch.empty(256), 64, ONE_BLOCK)


BARRIER = "barrier.cluster.arrive;\n    barrier.cluster.wait;"


@pytest.mark.parametrize(
    ("ptx", "message"),
    [
        pytest.param(edited(kernels.NEIGHBOR, BARRIER), "not have started", id="no barrier before"),
        pytest.param(edited(kernels.NEIGHBOR, BARRIER, "bar.sync 0;"), "not have started", id="a barrier of the block"),
        pytest.param(last_edited(kernels.NEIGHBOR, BARRIER), "may have ended", id="a block leaves early"),
        pytest.param(last_edited(kernels.NEIGHBOR, "barrier.cluster.wait;"), "may have ended", id="an arrival only"),
        pytest.param(edited(kernels.NEIGHBOR, "barrier.cluster.wait;"), "arrives twice|not have started", id="no wait"),
        pytest.param(edited(kernels.NEIGHBOR, "ld.shared::cluster", "ld.shared"), "own block", id="an own load"),
        pytest.param(edited(kernels.NEIGHBOR, "rem.u32 %r9, %r9, %r10;"), "out of bounds", id="a rank too high"),
        pytest.param(
            edited(kernels.NEIGHBOR, BARRIER, "setp.eq.s32 %p1, %r3, 0;\n@%p1 ret;\n" + BARRIER),
            "ended",
            id="a block ends at once",
        ),
        pytest.param(
            edited(edited(kernels.NEIGHBOR, "st.shared.f32 [%r8], %f1;"), "barrier.cluster.wait;",
                   "barrier.cluster.wait;\nst.shared.f32 [%r8], %f1;"),
            "race|nothing has written",
            id="a store after the barrier",
        ),
    ],
)  # fmt: skip
def test_clusters(ptx, message):
    with pytest.raises(Fault, match=message):
        kernels.launch(ptx, torch.randn(4, 32), torch.empty(4, 32), 64, CLUSTER)


def test_a_warp_instruction_of_a_part_of_the_warp():
    faulty = edited(edited(kernels.SUM, "after:"), "@!%p1 bra after;", "@!%p1 bra end;")
    faulty = edited(faulty, "@%p1 mov.f32 %f3, %f1;", "mov.f32 %f3, %f1;\nend:")
    for ptx in (kernels.SUM, faulty):
        with pytest.raises(Fault, match="for the lanes ffffffff, but the lanes ffff execute"):
            kernels.launch(ptx, torch.randn(32), torch.empty(32), 16, Shape((1, 1, 1), 32))
    without = edited(kernels.SUM, "bar.warp.sync -1;")  # all lanes shuffle
    kernels.launch(without, torch.randn(32), torch.empty(32), 16, Shape((1, 1, 1), 32))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_read_of_what_another_block_writes(order):
    """It is a fault if the result depends on it, whichever block runs first."""
    two_blocks = Shape((2, 1, 1), 1)
    x, y = torch.zeros(2), torch.zeros(2, dtype=torch.int32)
    ordered = edited(kernels.READ_OF_ANOTHER_BLOCK, "ld.global.u32 %r7, [%rd2+4];", "mov.u32 %r7, 0;")
    kernels.launch(ordered, x, y, 2, two_blocks, Conditions(order=order))
    assert y.tolist() == [0, 1]
    unused = kernels.READ_OF_ANOTHER_BLOCK
    kernels.launch(unused, x, y.zero_(), 2, two_blocks, Conditions(order=order))
    assert y.tolist() == [0, 1]
    used = edited(unused, "selp.b32 %r8, 0, %r7, %p1", "mov.b32 %r8, %r7")
    with pytest.raises(Fault, match=r"race.*the result depends on it"):
        kernels.launch(used, x, y.zero_(), 2, two_blocks, Conditions(order=order))


@pytest.mark.parametrize("order", [0, 1])
def test_a_read_after_the_write_of_another_block(order):
    """Block b writes element b and then reads element 0, which is its own for block 0 only."""
    ptx = edited(kernels.READ_OF_ANOTHER_BLOCK, "ld.global.u32 %r7, [%rd2+4];", "ld.global.u32 %r7, [%rd2];")
    ptx = edited(ptx, "@%p1 selp.b32 %r8, 0, %r7, %p1", "@!%p1 mov.b32 %r8, %r7")
    with pytest.raises(Fault, match=r"race.*the result depends on it"):
        kernels.launch(
            ptx, torch.zeros(2), torch.zeros(2, dtype=torch.int32), 2, Shape((2, 1, 1), 1), Conditions(order=order)
        )


def test_an_unsupported_instruction_is_an_error_with_its_text():
    with pytest.raises(PtxError, match=r"unsupported PTX instruction in kernel: mul24.lo.s32 %r9, %r1, %r2"):
        kernels.launch(
            edited(kernels.REVERSE, "sub.s32 %r9, %r1", "mul24.lo.s32 %r9, %r1"), *(torch.empty(64),) * 2, 64, ONE_BLOCK
        )


def test_the_report_names_the_instruction_and_the_thread():
    with pytest.raises(Fault, match=r"kernel, block \(0, 0, 0\), thread 63\n  st.global.f32 \[%rd5\+4\], %f2"):
        faulty = edited(kernels.REVERSE, "[%rd5], %f2", "[%rd5+4], %f2")
        kernels.launch(faulty, torch.randn(64), torch.empty(64), 64, ONE_BLOCK)
