"""Token labels from spans, on every backend, against an oracle that counts characters."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sad
from sad import Span, span_ids_from_offsets
from sadkernels import backends
from sadkernels.ops import span_ids as op
from tests.sadkernels.cuda import emulated

R, A, O = Span.REASON, Span.ACT, Span.OBSERVE
BACKENDS = ["reference", "cpu", "triton", "cuda"]


class Labels(NamedTuple):
    """Calls `span_ids_from_offsets` on one backend; inputs and results are on the CPU."""

    backend: str
    device: torch.device

    def __call__(self, offsets, spans, **options):
        if not isinstance(offsets, torch.Tensor):
            offsets = torch.tensor(offsets, dtype=torch.int64).reshape(-1, 2)
        result = span_ids_from_offsets(offsets.to(self.device), spans, backend=self.backend, **options)
        return tuple(x.cpu() for x in result) if isinstance(result, tuple) else result.cpu()


@pytest.fixture(scope="module", params=BACKENDS)
def label(request) -> Iterator[Labels]:
    """Every backend. Without a GPU: the Triton interpreter and the emulated CUDA kernels."""
    backend = request.param
    gpu = torch.cuda.is_available() and backend in ("triton", "cuda")
    device = torch.device("cuda" if gpu else "cpu")
    with pytest.MonkeyPatch.context() as patch:
        if backend == "cuda" and not gpu and "SAD_CUDA_EMULATED" not in os.environ:
            patch.setenv("SAD_CUDA_EMULATED", str(emulated.library()))
        if reason := backends.why_not(backend, "span_ids", device):
            assert backend in ("triton", "cuda"), reason  # the CPU extension must be built
            pytest.skip(reason)
        yield Labels(backend, device)


def oracle(offsets: list[tuple[int, int]], spans: list[Span]) -> list[int]:
    """Counts characters one by one, as the rule says."""
    ids = []
    for begin, end in offsets:
        votes = [sum(span.start <= c < span.end for c in range(begin, end)) for span in spans]
        ids.append(int(spans[votes.index(max(votes))].kind) if max(votes, default=0) else 0)
    return ids


@st.composite
def disjoint_spans(draw) -> list[Span]:
    cuts = sorted(draw(st.lists(st.integers(0, 60), max_size=16)))
    return [Span(a, b, draw(st.sampled_from([R, A, O]))) for a, b in zip(cuts[::2], cuts[1::2])]


OFFSETS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)).map(lambda x: (x[0], x[0] + x[1])), max_size=30)


@settings(deadline=None, max_examples=60)  # the first call imports torch._dynamo
@given(st.lists(st.tuples(OFFSETS, disjoint_spans()), min_size=1, max_size=3))
def test_agrees_with_counting_characters(label, rows):
    """Any tokens (unordered, overlapping, empty), any disjoint spans. A batch equals its rows; masks equal the ids."""
    expected = [oracle(offsets, spans) for offsets, spans in rows]
    assert label(*rows[0]).tolist() == expected[0]
    length = max(len(offsets) for offsets, _ in rows)
    padded = [o + [(0, 0)] * (length - len(o)) for o, _ in rows]
    padded = torch.tensor(padded, dtype=torch.int32).reshape(len(rows), length, 2)
    batch = label(padded, [spans for _, spans in rows])
    assert batch.dtype == torch.uint8
    assert batch.tolist() == [ids + [0] * (length - len(ids)) for ids in expected]
    reason, act = label(padded, [spans for _, spans in rows], masks=True)
    assert reason.dtype == act.dtype == torch.bool
    assert torch.equal(reason, batch == R) and torch.equal(act, batch == A)


def test_a_large_batch(label):
    """64 rows of 512 tokens with 40 spans each; three rows have no span."""
    widths = torch.randint(0, 7, (64, 512))
    ends = widths.cumsum(1)
    offsets = torch.stack([ends - widths, ends], dim=-1)
    cuts = [torch.randperm(int(row[-1]))[:80].sort().values.tolist() for row in ends]
    spans = [[Span(a, b, R if i % 2 else A) for i, (a, b) in enumerate(zip(c[::2], c[1::2]))] for c in cuts]
    spans[0] = spans[7] = spans[63] = []
    expected = span_ids_from_offsets(offsets, spans, backend="reference")
    assert expected.unique().tolist() == [0, 1, 2]
    assert torch.equal(label(offsets, spans), expected)
    reason, act = label(offsets, spans, masks=True)
    assert torch.equal(sad.span_ids_from_masks(reason, act), expected)


@pytest.mark.parametrize(
    ("offsets", "spans", "expected"),
    [
        pytest.param([(0, 4)], [Span(0, 2, R), Span(2, 4, A)], [1], id="a tie goes to the earlier span"),
        pytest.param([(0, 4)], [Span(2, 4, A), Span(0, 2, R)], [1], id="the earlier span in the text, not in the list"),
        pytest.param([(0, 5)], [Span(0, 2, R), Span(2, 5, A)], [2], id="the most characters win"),
        pytest.param([(0, 9)], [Span(8, 9, A)], [2], id="characters outside spans do not compete"),
        pytest.param(
            [(0, 6)], [Span(0, 1, R), Span(1, 3, A), Span(3, 4, R), Span(4, 6, A)], [2], id="spans compete, not kinds"
        ),
        pytest.param(
            [(40, 41), (41, 43), (42, 43), (43, 44)], [Span(42, 44, A)], [0, 2, 2, 2], id="a character split into bytes"
        ),
        pytest.param(
            [(41, 43), (42, 43)],
            [Span(0, 42, R), Span(42, 50, A)],
            [1, 2],
            id="a split character between two spans",
        ),
        pytest.param([(0, 0), (3, 3), (5, 2), (0, 3)], [Span(0, 9, R)], [0, 0, 0, 1], id="zero width"),
        pytest.param([(0, 3)], [], [0], id="no spans"),
        pytest.param([(0, 3)], [Span(1, 1, R)], [0], id="an empty span"),
        pytest.param([], [Span(0, 1, R)], [], id="no tokens"),
    ],
)
def test_the_rule(label, offsets, spans, expected):
    assert label(offsets, spans).tolist() == expected


def test_masks_and_ragged_tensors(label):
    offsets = torch.tensor([[[0, 4], [4, 8], [8, 9]], [[0, 2], [2, 4], [0, 0]]])
    ragged = tuple(map(torch.tensor, ([0, 5, 2], [4, 9, 4], [1, 2, 2], [0, 2, 3])))
    there = tuple(x.to(label.device, torch.int32) for x in ragged)
    for spans, check in ((ragged, True), (there, True), (there, False)):
        ids = label(offsets, spans, check=check)
        assert ids.tolist() == [[1, 2, 2], [0, 2, 0]]
        reason, act = label(offsets, spans, masks=True, check=check)
        assert torch.equal(sad.span_ids_from_masks(reason, act), ids)
    for mask, expected in zip(label(offsets[0], [Span(0, 4, R)], masks=True), ([1, 0, 0], [0, 0, 0])):
        assert mask.tolist() == expected  # (T, 2) gives (T,)


def test_strided_offsets(label):
    """A slice of the tokenizer's batch is not contiguous."""
    offsets = torch.arange(48).reshape(2, 12, 2)
    spans = [[Span(6, 20, R)], [Span(30, 31, A)]]
    whole = label(offsets, spans)
    assert torch.equal(label(offsets[:, ::2], spans), whole[:, ::2])
    assert whole.count_nonzero() == 8


@pytest.mark.parametrize(
    "numbers", [([], [], [], [0]), ([0], [3], [1], [0, 1]), (range(9), range(1, 10), [2] * 9, [0, 4, 9])]
)
def test_spans_are_copied_to_the_device_at_once(numbers):
    ragged = tuple(torch.tensor(x, dtype=torch.int64) for x in numbers)
    moved = op._to_device(ragged, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    assert [x.tolist() for x in moved] == [list(x) for x in numbers]
    assert [x.dtype for x in moved] == [torch.int64, torch.int64, torch.uint8, torch.int64]
    assert len({x.untyped_storage().data_ptr() for x in moved}) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_device_synchronization():
    offsets = torch.tensor([[0, 4], [4, 8]], device="cuda")
    span_ids_from_offsets(offsets, [Span(0, 5, R)])  # compile first
    torch.cuda.set_sync_debug_mode("error")
    try:
        ids = span_ids_from_offsets(offsets, [Span(0, 5, R)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert ids.tolist() == [1, 1]


def test_number_of_threads_does_not_change_the_labels():
    """270,000 tokens, enough for several threads; shares start in the middle of a row."""
    begins = torch.arange(90_000) * 3
    offsets = torch.stack([begins, begins + 3], dim=-1).expand(3, -1, -1)
    spans = [[Span(i, i + 50, R if i % 200 else A) for i in range(row, 260_000, 100)] for row in range(3)]
    threads, ids = torch.get_num_threads(), {}
    try:
        for n in (1, 4):
            torch.set_num_threads(n)
            ids[n] = span_ids_from_offsets(offsets, spans, backend="cpu")
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(ids[1], ids[4])
    # Shares start at multiples of 65,536: token 65,536 of row 0 and token 41,072 of row 1.
    for start in (0, 41_000, 65_000, 89_500):
        part = slice(start, start + 600)
        assert torch.equal(ids[1][:, part], span_ids_from_offsets(offsets[:, part], spans, backend="reference"))


def _label_in_child(connection) -> None:
    connection.send(span_ids_from_offsets([(0, 2), (2, 4)], [Span(2, 4, A)], backend="cpu").tolist())


def test_labels_are_built_in_a_forked_worker():
    """As in a DataLoader: the parent has used threads, and the child must not wait for them."""
    torch.randn(512, 512) @ torch.randn(512, 512)
    span_ids_from_offsets(torch.zeros(2, 200_000, 2, dtype=torch.int64), [[], []], backend="cpu")
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_label_in_child, args=(there,))
    child.start()
    assert here.poll(30), "the forked worker hangs"
    assert here.recv() == [0, 2]
    child.join(30)
    assert child.exitcode == 0


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([Span(0, 6, R), Span(5, 8, A)], r"do not overlap, got \(5, 8, 2\) after \(0, 6, 1\) as span 1 of row 0"),
        ([Span(3, 1, R)], r"0 <= start <= end, got \(3, 1, 1\)"),
        ([Span(-1, 1, R)], r"0 <= start <= end, got \(-1, 1, 1\)"),
        ([(0, 1, 5)], r"kind 0 \(none\), 1 \(reason\), 2 \(act\) or 3 \(observe\), got \(0, 1, 5\)"),
        ([(0, 1)], r"triples \(start, end, kind\)"),
        (tuple(map(torch.tensor, ([0], [1], [1], [0, 2]))), "row_splits: expected 0 first, 1 .* last"),
        (tuple(map(torch.tensor, ([0, 1], [1, 2], [1], [0, 2]))), r"kinds: expected shape \(M,\)"),
        (tuple(map(torch.tensor, ([4, 0], [5, 1], [1, 1], [0, 2]))), "spans in order that do not overlap"),
    ],
)
def test_invalid_spans_raise(spans, message):
    with pytest.raises(ValueError, match=message):
        span_ids_from_offsets([(0, 4)], spans)


def test_invalid_offsets_raise():
    with pytest.raises(ValueError, match=r"offsets: expected shape \(T, 2\) or \(B, T, 2\), got \(4,\)"):
        span_ids_from_offsets(torch.arange(4), [])
    with pytest.raises(TypeError, match="offsets: expected an integer tensor"):
        span_ids_from_offsets(torch.zeros(4, 2), [])
    with pytest.raises(ValueError, match="2 lists of spans, one per row"):
        span_ids_from_offsets(torch.zeros(2, 4, 2, dtype=torch.int64), [[]])


def test_spans_on_another_device_raise():
    spans = tuple(torch.zeros(n, dtype=torch.int64, device="meta") for n in (1, 1, 1, 2))
    with pytest.raises(ValueError, match="starts: expected all of starts, ends, kinds and row_splits on cpu, like offsets"):
        span_ids_from_offsets([(0, 4)], spans)


def test_check_false_skips_the_value_check():
    ragged = tuple(map(torch.tensor, ([5, 0], [9, 4], [1, 2], [0, 2])))
    with pytest.raises(ValueError, match="spans in order"):
        span_ids_from_offsets([(0, 4)], ragged)
    span_ids_from_offsets([(0, 4)], ragged, check=False)  # any label, no error


@pytest.mark.parametrize("name", ["span_ids_from_offsets", "span_masks_from_offsets"])
def test_opcheck(label, name):
    offsets = torch.tensor([[[0, 4], [4, 8]]])
    spans = [torch.tensor(x) for x in ([0], [5])] + [torch.tensor([1], dtype=torch.uint8), torch.tensor([0, 1])]
    arguments = [x.to(label.device) for x in (offsets, *spans)]
    torch.library.opcheck(getattr(torch.ops.sad, name), (*arguments, label.backend))
