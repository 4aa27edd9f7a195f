"""The launch plans for real GPUs: all blocks run at the same time, and no part of a GPU is idle without a reason.

The numbers of GPCs are examples: NVIDIA disables different SMs in every chip. The tests compute the blocks that run at the
same time from the plan, not from the model of `occupancy.h`.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import pytest

from sadkernels.native import extension

MIB = 1 << 20


class Card(NamedTuple):
    arch: int
    gpc_sms: tuple[int, ...]
    l2_bytes: int
    sm_shared_kb: int
    sm_threads: int

    @property
    def sms(self) -> int:
        return sum(self.gpc_sms)

    @property
    def has_gddr(self) -> bool:
        return self.arch in (86, 89, 120)


CARDS = {
    "A100": Card(80, (16, 16, 16, 16, 16, 14, 14), 40 * MIB, 164, 2048),
    "A6000": Card(86, (12,) * 7, 6 * MIB, 100, 1536),
    "4090": Card(89, (12, 12, 12, 12, 12, 12, 12, 12, 12, 10, 10), 72 * MIB, 100, 1536),
    "L40S": Card(89, (12,) * 11 + (10,), 96 * MIB, 100, 1536),
    "H100": Card(90, (18, 18, 18, 16, 16, 16, 16, 14), 50 * MIB, 228, 2048),
    "H100 PCIe": Card(90, (16, 16, 16, 16, 16, 16, 18), 50 * MIB, 228, 2048),
    "H200": Card(90, (18, 18, 16, 16, 16, 16, 16, 16), 60 * MIB, 228, 2048),
    "B200": Card(100, (20, 20, 18, 18, 18, 18, 18, 18), 126 * MIB, 228, 2048),
    "5090": Card(120, (16,) * 10 + (10,), 96 * MIB, 100, 1536),
}
VOCABS = (32_000, 50_257, 100_352, 128_256, 152_064, 201_088, 262_144)
ROWS = (64, 96, 109, 128, 133, 200, 256, 300, 512, 1024, 2048, 4096, 16_384)


def plans(card: Card):
    """Yields rows, V, bytes of an element, whether the kernel is lean, and the plan of each shape."""
    for rows, vocab, element, lean in itertools.product(ROWS, VOCABS, (2, 4), (True, False)):
        plan = extension.load("cuda").plan(
            arch=card.arch,
            l2_bytes=card.l2_bytes,
            block_shared_bytes=(card.sm_shared_kb - 1) * 1024,
            sm_shared_bytes=card.sm_shared_kb * 1024,
            gpc_sms=list(card.gpc_sms),
            sm_threads=card.sm_threads,
            ptx_version=card.arch,
            rows=rows,
            vocab=vocab,
            element_bytes=element,
            lean=lean,
        )
        yield rows, vocab, element, lean, plan


def blocks_at_once(card: Card, plan: dict, lean: bool) -> int:
    """Returns how many blocks of this shape run at the same time."""
    registers = 64 if lean and plan["strategy"] != "sliced" else 128  # the kernels of slices are compiled for 128
    per_sm = min(
        card.sm_threads // plan["threads"],
        65536 // (registers * plan["threads"]),
        card.sm_shared_kb * 1024 // (plan["shared_bytes"] + 1024),
    )
    cluster = plan["cluster"]
    return sum(sms * per_sm // cluster * cluster for sms in card.gpc_sms)


@pytest.mark.parametrize("name", CARDS)
def test_all_blocks_run_at_the_same_time(emulated_backend, name):
    card = CARDS[name]
    for *shape, lean, plan in plans(card):
        assert 0 < plan["blocks"] <= blocks_at_once(card, plan, lean), (shape, plan)
        assert plan["shared_bytes"] <= (card.sm_shared_kb - 1) * 1024, (shape, plan)


@pytest.mark.parametrize("name", CARDS)
def test_every_sm_has_the_same_number_of_blocks(emulated_backend, name):
    """Unless the rows or the clusters of the GPU are fewer, or fewer blocks than SMs keep the rows in L2."""
    card = CARDS[name]
    for rows, vocab, element, _, plan in plans(card):
        if plan["strategy"] == "sliced" or plan["cluster"] > 1 or plan["blocks"] == rows:
            continue
        reason = card.has_gddr and fits_l2(card, plan["blocks"], vocab, element)
        assert plan["blocks"] % card.sms == 0 or reason, (rows, vocab, element, plan)


@pytest.mark.parametrize("name", CARDS)
def test_idle_sms_have_a_reason(emulated_backend, name):
    card = CARDS[name]
    for rows, vocab, element, lean, plan in plans(card):
        at_once = blocks_at_once(card, plan, lean)
        if plan["strategy"] == "sliced":  # at least two slices per row, and one more per row would be too many
            assert plan["blocks"] >= 0.6 * at_once, (rows, vocab, element, plan)
        elif plan["cluster"] > 1:
            clusters = plan["blocks"] // plan["cluster"]
            assert clusters == rows or plan["blocks"] >= 0.85 * card.sms, (rows, vocab, element, plan)
        elif plan["blocks"] < min(card.sms, rows):
            assert card.has_gddr and plan["blocks"] >= card.sms // 2, (rows, vocab, element, plan)
            assert fits_l2(card, plan["blocks"], vocab, element), "idle SMs must keep the rows in L2"
            assert not fits_l2(card, 1.5 * card.sms, vocab, element), "all SMs would keep them in L2"


@pytest.mark.parametrize("name", CARDS)
def test_the_last_rows_do_not_take_a_round_of_their_own(emulated_backend, name):
    """The busiest SM has at most 1.25 times the mean number of columns, or as many as whole rows on single SMs require."""
    card = CARDS[name]
    for rows, vocab, element, lean, plan in plans(card):
        cluster, blocks = plan["cluster"], plan["blocks"]
        if plan["strategy"] == "sliced" or rows < card.sms or (cluster == 1 and blocks < card.sms):
            continue
        on_sm = math.ceil((blocks_at_once(card, plan, lean) if blocks == rows * cluster else blocks) / card.sms)
        clusters = blocks_at_once(card, plan, lean) // cluster if blocks == rows * cluster else blocks // cluster
        busiest = math.ceil(rows * on_sm / clusters) / cluster
        assert busiest <= max(1.25 * rows / card.sms, math.ceil(rows / card.sms)), (rows, vocab, element, lean, plan)


def fits_l2(card: Card, blocks: float, vocab: int, element: int) -> bool:
    return blocks * vocab * element <= card.l2_bytes  # half the bytes of a pair of rows


def plan_of(name: str, **shape) -> dict:
    asked = (shape["rows"], shape["vocab"], shape["element"], shape["lean"])
    return next(plan for *found, plan in plans(CARDS[name]) if tuple(found) == asked)


@pytest.mark.parametrize(("vocab", "element"), [(100_352, 2), (262_144, 4)])
def test_gddr_streams_rows_that_only_a_cluster_holds(emulated_backend, vocab, element):
    plan = plan_of("5090", rows=4096, vocab=vocab, element=element, lean=True)
    assert (plan["strategy"], plan["cluster"]) == ("streamed", 1)


def test_an_a6000_uses_all_sms_if_half_of_them_exceed_l2(emulated_backend):
    assert plan_of("A6000", rows=4096, vocab=50_257, element=2, lean=True)["blocks"] == 43
    assert plan_of("A6000", rows=4096, vocab=128_256, element=2, lean=True)["blocks"] == 2 * 84


def test_clusters_leave_out_the_sms_that_a_gpc_cannot_group(emulated_backend):
    """132 SMs with two blocks each are 33 clusters of 8, of which only 31 find a place."""
    plan = plan_of("H100", rows=4096, vocab=128_256, element=2, lean=True)
    assert (plan["cluster"], plan["blocks"]) == (8, 31 * 8)
