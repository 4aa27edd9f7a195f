"""The labels of the methods that do not use SAD's spans."""

from __future__ import annotations

from itertools import groupby

from sad.study.labels import relabel

ROW = [0, 3, 3, 1, 1, 1, 2, 2, 3, 0, 1, 2, 2, 3, 0]
EXAMPLES = [{"input_ids": list(range(15)), "span_ids": ROW}, {"input_ids": [1, 2], "span_ids": [3, 0]}]


def test_spans_are_kept_with_observations() -> None:
    assert relabel(EXAMPLES, "spans", 0) == EXAMPLES


def test_all_labels_every_token_after_the_prompt() -> None:
    first, second = relabel(EXAMPLES, "all", 0)
    assert first["span_ids"] == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 1, 2, 2, 3, 3]
    assert second["span_ids"] == [0, 0], "without a span there is no token after the prompt"
    assert first["input_ids"] == EXAMPLES[0]["input_ids"]


def runs(row: list[int]) -> list[tuple[int, int]]:
    return sorted((kind, len(list(run))) for kind, run in groupby(row) if kind)


def test_random_spans_have_the_same_lengths_at_other_places() -> None:
    placed = {tuple(relabel(EXAMPLES, "random", seed)[0]["span_ids"]) for seed in range(30)}
    assert len(placed) > 10
    for row in placed:
        assert len(row) == len(ROW) and row[:3] == (0, 0, 0)
        assert sum(kind == 1 for kind in row) == 4 and sum(kind == 2 for kind in row) == 4
    whole = {tuple(runs(list(row))) for row in placed}
    assert tuple(sorted([(1, 3), (2, 2), (1, 1), (2, 2)])) in whole, "spans that do not touch keep their lengths"
    assert relabel(EXAMPLES, "random", 7) == relabel(EXAMPLES, "random", 7)
