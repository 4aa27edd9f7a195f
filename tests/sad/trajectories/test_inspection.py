"""Lengths of spans: summaries, histograms, tokens per span."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sad import Span
from sad.trajectories.inspection import SpanLengths, histogram, summarize, tokens_per_span

R, A, O = Span.REASON, Span.ACT, Span.OBSERVE


@given(st.lists(st.integers(0, 1000), min_size=2))
def test_summary_agrees_with_the_standard_library(lengths):
    summary = summarize(lengths)
    assert summary.mean == pytest.approx(statistics.fmean(lengths))
    assert summary.median == pytest.approx(statistics.median(lengths))
    assert summary.p95 == pytest.approx(statistics.quantiles(lengths, n=20, method="inclusive")[-1])
    assert (summary.count, summary.max) == (len(lengths), max(lengths))
    assert summarize([]).count == 0


@given(st.lists(st.integers(1, 500), min_size=1), st.integers(1, 30))
def test_histogram_counts_every_length_once(lengths, bins):
    bars = histogram(lengths, bins)
    assert sum(bar.count for bar in bars) == len(lengths) and len(bars) <= bins
    for bar in bars[:-1]:
        assert bar.count == sum(bar.low <= length <= bar.high for length in lengths)


def test_tokens_per_span():
    """Adjacent reasoning lines are two spans; a token across a border counts once; an EOS belongs to the last span."""
    spans = [Span(0, 6, R), Span(6, 12, R), Span(14, 18, A)]
    offsets = [(0, 4), (4, 9), (9, 12), (12, 14), (14, 17), (16, 17), (17, 18), (18, 18)]
    assert tokens_per_span(spans, offsets, [1, 1, 1, 0, 2, 2, 2, 2]) == [1, 2, 4]
    assert tokens_per_span([], [(0, 2)], [0]) == []
    observed = [Span(12, 14, O)]  # tokens of the other kinds belong to other spans
    assert tokens_per_span(observed, offsets, [1, 1, 1, 3, 2, 2, 2, 2]) == [1]
    assert tokens_per_span(spans, offsets, [1, 1, 1, 3, 2, 2, 2, 2]) == [1, 2, 4]


def test_span_lengths_add_up_over_trajectories():
    lengths = SpanLengths("tokens")
    lengths.add(20, [Span(0, 1, R), Span(1, 2, A), Span(2, 3, R)], [4, 2, 6])
    lengths.add(10, [Span(0, 1, R), Span(1, 2, A), Span(2, 3, O)], [5, 0, 1])  # the action was cut off
    assert lengths.per_span == {R: [4, 6, 5], A: [2], O: [1]}
    assert lengths.per_trajectory == {R: [10, 5], A: [2], O: [1]}
    assert [lengths.share(kind) for kind in (Span.NONE, R, A, O)] == pytest.approx([12 / 30, 15 / 30, 2 / 30, 1 / 30])
