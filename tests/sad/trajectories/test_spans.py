"""Spans to token labels, on every backend, against an oracle that looks at single characters."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sad
from sad import Span, span_ids_from_offsets
from sadkernels import backends

R, A = Span.REASON, Span.ACT
BACKENDS = ["reference", "cpu"]


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    assert backends.why_not(request.param, "span_ids", torch.device("cpu")) is None  # the extension must be there
    return request.param


def oracle(offsets: list[tuple[int, int]], spans: list[Span]) -> list[int]:
    """Counts characters one by one, as the rule is stated."""
    ids = []
    for begin, end in offsets:
        votes = [sum(span.start <= c < span.end for c in range(begin, end)) for span in spans]
        ids.append(int(spans[votes.index(max(votes))].kind) if max(votes, default=0) else 0)
    return ids


@st.composite
def disjoint_spans(draw) -> list[Span]:
    cuts = sorted(draw(st.lists(st.integers(0, 60), max_size=16)))
    return [Span(a, b, draw(st.sampled_from([R, A]))) for a, b in zip(cuts[::2], cuts[1::2])]


OFFSETS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)).map(lambda x: (x[0], x[0] + x[1])), max_size=30)


@settings(deadline=None)  # the first call imports torch.compile's library
@given(st.lists(st.tuples(OFFSETS, disjoint_spans()), min_size=1, max_size=3), st.sampled_from(BACKENDS))
def test_agrees_with_counting_characters(rows, backend):
    """Any tokens (unordered, overlapping, empty) and any disjoint spans; a batch equals its rows."""
    single = [span_ids_from_offsets(offsets, spans, backend=backend).tolist() for offsets, spans in rows]
    assert single == [oracle(offsets, spans) for offsets, spans in rows]
    length = max(len(offsets) for offsets, _ in rows)
    padded = torch.tensor([o + [(0, 0)] * (length - len(o)) for o, _ in rows], dtype=torch.int32).reshape(
        len(rows), length, 2
    )
    batch = span_ids_from_offsets(padded, [spans for _, spans in rows], backend=backend)
    assert batch.dtype == torch.uint8
    assert batch.tolist() == [ids + [0] * (length - len(ids)) for ids in single]


@pytest.mark.parametrize(
    ("offsets", "spans", "expected"),
    [
        pytest.param([(0, 4)], [Span(0, 2, R), Span(2, 4, A)], [1], id="a tie goes to the earlier span"),
        pytest.param([(0, 4)], [Span(2, 4, A), Span(0, 2, R)], [1], id="earlier in the text, not in the list"),
        pytest.param([(0, 5)], [Span(0, 2, R), Span(2, 5, A)], [2], id="the most characters win"),
        pytest.param([(0, 9)], [Span(8, 9, A)], [2], id="characters outside spans do not compete"),
        pytest.param(
            [(0, 6)], [Span(0, 1, R), Span(1, 3, A), Span(3, 4, R), Span(4, 6, A)], [2], id="spans compete, not kinds"
        ),
        pytest.param(
            [(40, 41), (41, 43), (42, 43), (43, 44)], [Span(42, 44, A)], [0, 2, 2, 2], id="a character split in bytes"
        ),
        pytest.param([(41, 43), (42, 43)], [Span(0, 42, R), Span(42, 50, A)], [1, 2], id="and at the border of two spans"),
        pytest.param([(0, 0), (3, 3), (5, 2), (0, 3)], [Span(0, 9, R)], [0, 0, 0, 1], id="zero width"),
        pytest.param([(0, 3)], [], [0], id="no spans"),
        pytest.param([(0, 3)], [Span(1, 1, R)], [0], id="an empty span"),
        pytest.param([], [Span(0, 1, R)], [], id="no tokens"),
    ],
)
def test_the_rule(backend, offsets, spans, expected):
    assert span_ids_from_offsets(offsets, spans, backend=backend).tolist() == expected


def test_masks_and_ragged_tensors(backend):
    offsets = torch.tensor([[[0, 4], [4, 8], [8, 9]], [[0, 2], [2, 4], [0, 0]]])
    ragged = tuple(map(torch.tensor, ([0, 5, 2], [4, 9, 4], [1, 2, 2], [0, 2, 3])))
    ids = span_ids_from_offsets(offsets, ragged, backend=backend)
    assert ids.tolist() == [[1, 2, 2], [0, 2, 0]]
    reason, act = span_ids_from_offsets(offsets, ragged, masks=True, backend=backend)
    assert torch.equal(sad.span_ids_from_masks(reason, act), ids)


def test_strided_offsets(backend):
    """A slice of the tokenizer's batch is not contiguous."""
    offsets = torch.arange(48).reshape(2, 12, 2)
    spans = [[Span(6, 20, R)], [Span(30, 31, A)]]
    whole = span_ids_from_offsets(offsets, spans, backend=backend)
    assert torch.equal(span_ids_from_offsets(offsets[:, ::2], spans, backend=backend), whole[:, ::2])
    assert whole.count_nonzero() == 8


def test_threads_do_not_change_the_answer():
    """270,000 tokens: enough that several threads get a share, which begins in the middle of a row."""
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
    for start in (
        0,
        41_000,
        65_000,
        89_500,
    ):  # shares begin at multiples of 65,536: tokens 41,072 of row 1 and 65,536 of row 0
        part = slice(start, start + 600)
        assert torch.equal(ids[1][:, part], span_ids_from_offsets(offsets[:, part], spans, backend="reference"))


def _label_in_child(connection) -> None:
    connection.send(span_ids_from_offsets([(0, 2), (2, 4)], [Span(2, 4, A)], backend="cpu").tolist())


def test_labels_are_built_in_a_forked_worker():
    """As in a DataLoader: the parent has used threads, the child must not wait for them."""
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
        ([(0, 1, 5)], r"kind 0 \(none\), 1 \(reason\) or 2 \(act\), got \(0, 1, 5\)"),
        ([(0, 1)], r"triples \(start, end, kind\)"),
        (tuple(map(torch.tensor, ([0], [1], [1], [0, 2]))), "row_splits: expected 0 first, 1 .* last"),
        (tuple(map(torch.tensor, ([0, 1], [1, 2], [1], [0, 2]))), r"kinds: expected shape \(M,\)"),
        (tuple(map(torch.tensor, ([4, 0], [5, 1], [1, 1], [0, 2]))), "spans in order that do not overlap"),
    ],
)
def test_spans_that_cannot_be(spans, message):
    with pytest.raises(ValueError, match=message):
        span_ids_from_offsets([(0, 4)], spans)


def test_offsets_that_cannot_be():
    with pytest.raises(ValueError, match=r"offsets: expected shape \(T, 2\) or \(B, T, 2\), got \(4,\)"):
        span_ids_from_offsets(torch.arange(4), [])
    with pytest.raises(TypeError, match="offsets: expected an integer tensor"):
        span_ids_from_offsets(torch.zeros(4, 2), [])
    with pytest.raises(ValueError, match="2 lists of spans, one per row"):
        span_ids_from_offsets(torch.zeros(2, 4, 2, dtype=torch.int64), [[]])


def test_the_op_is_sound(backend):
    offsets = torch.tensor([[[0, 4], [4, 8]]])
    spans = [torch.tensor(x) for x in ([0], [5])] + [torch.tensor([1], dtype=torch.uint8), torch.tensor([0, 1])]
    torch.library.opcheck(torch.ops.sad.span_ids_from_offsets, (offsets, *spans, backend))
