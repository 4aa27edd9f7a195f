"""Paths, patterns and named sets of `--data` and `--eval-data`."""

from __future__ import annotations

import pytest

from sad.errors import InputError
from sad.training.data_files import evaluation_sets, expand_paths


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    for name in ("b.jsonl", "a.jsonl", "x=y.jsonl", "odd[1].jsonl"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


def test_patterns_are_expanded_in_order():
    assert expand_paths("data", ["b.jsonl", "?.jsonl"]) == ["b.jsonl", "a.jsonl", "b.jsonl"]
    assert expand_paths("data", ["odd[1].jsonl", "missing.jsonl"]) == ["odd[1].jsonl", "missing.jsonl"]  # the reader says so
    with pytest.raises(InputError, match="data: expected a pattern that matches a file"):
        expand_paths("data", ["*.parquet"])


def test_named_sets():
    assert evaluation_sets([]) == {}
    assert evaluation_sets(["a.jsonl", "b.jsonl"]) == {"eval_data": ["a.jsonl", "b.jsonl"]}
    assert evaluation_sets(["seen=a.jsonl", "new=b.jsonl", "seen=b.jsonl"]) == {
        "eval_data_seen": ["a.jsonl", "b.jsonl"],
        "eval_data_new": ["b.jsonl"],
    }
    assert evaluation_sets(["x=y.jsonl"]) == {"eval_data": ["x=y.jsonl"]}  # a file of that name
    with pytest.raises(InputError, match="no name for"):
        evaluation_sets(["seen=a.jsonl", "b.jsonl"])
