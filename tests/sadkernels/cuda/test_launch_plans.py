"""Every way to walk the rows gives the same numbers; which one is taken depends on the card."""

from __future__ import annotations

import pytest
import torch

from sadkernels.native import extension
from tests.sadkernels.span_kl_cases import assert_close_to_truth, logits, run, truth


def card(arch: int, block_kb: float, processor_kb: float, l2_bytes: int = 50 << 20, processors: int = 2) -> dict[str, int]:
    shared = {"block_shared_bytes": int(block_kb * 1024), "processor_shared_bytes": int(processor_kb * 1024)}
    return {"processors": processors, "arch": arch, "l2_bytes": l2_bytes, **shared}


DEFAULT = card(90, 227, 228)
CARDS = {  # and how rows of 3001 float32 columns are walked there: the way, the blocks of a cluster
    "one block": (DEFAULT, "resident", 1),
    "cluster of 2": (card(90, 15, 32), "resident", 2),
    "cluster of 4": (card(90, 8.5, 20), "resident", 4),
    "cluster of 8": (card(90, 6, 14), "resident", 8),
    "streamed": (card(80, 3, 4), "streamed", 1),
    "L2 overrun": (card(86, 3, 4, l2_bytes=8 << 10), "streamed", 1),
}


@pytest.fixture
def set_card(emulated_backend):
    """Sets the card that the plans of the emulated kernels are made for, until the test ends."""
    kernels = extension.load("cuda")
    yield lambda figures: kernels.set_emulated_card(**figures)
    kernels.set_emulated_card(**DEFAULT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"divergence": "jsd"}], ids=["forward_kl", "jsd"])
@pytest.mark.parametrize("name", CARDS)
def test_whole_rows(emulated_backend, set_card, name, options, dtype):
    figures, way, cluster = CARDS[name]
    set_card(figures)
    plan = extension.load("cuda").plan(**figures, rows=5, vocab=3001, element_bytes=4, lean=not options)
    assert (plan["way"], plan["cluster"]) == (way, cluster)
    student, teacher = logits(5, 3001, dtype), logits(5, 3001, dtype)
    ids = torch.tensor([1, 0, 2, 2, 1])
    got = run(student, teacher, ids, emulated_backend, **options)
    assert_close_to_truth(got, truth(student, teacher, ids, **options), dtype)


@pytest.mark.parametrize("options", [{}, {"divergence": "reverse_kl"}, {"reduction": "none"}], ids=str)
def test_a_single_long_row(emulated_backend, set_card, options):
    """One row and 16 SMs: it is cut into slices."""
    figures = card(90, 227, 228, processors=16)
    set_card(figures)
    assert extension.load("cuda").plan(**figures, rows=1, vocab=40_000, element_bytes=4, lean=True)["slices"] > 1
    student, teacher, ids = logits(1, 40_000), logits(1, 40_000), torch.tensor([2])
    got = run(student, teacher, ids, emulated_backend, **options)
    assert_close_to_truth(got, truth(student, teacher, ids, **options), torch.float32)
