"""Logs of real programs whose labels are known: every folder of shared/data/chat/cases has an input and what is right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import sad
from sad.trajectories.encode import encode_with_segmentation
from tests.processes import run_python

CHAT = Path(__file__).parents[4] / "shared/data/chat"
CASES = sorted((CHAT / "cases").glob("*/expected.md")) if CHAT.is_dir() else []
pytestmark = pytest.mark.skipif(not CASES, reason="needs the folder shared/data/chat with logs, vocabularies and templates")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tokenizers")
    done = run_python(CHAT / "make_tokenizers.py", out, folder=tmp_path_factory.mktemp("logs"))
    assert done.returncode == 0, done.stderr
    return out


def labels_of_characters(encoded: sad.Encoded, length: int) -> list[int]:
    labels = [0] * length
    for (start, end), label in zip(encoded.offsets, encoded.span_ids):
        for i in range(start, end):
            labels[i] = labels[i] or label
    return labels


def kinds_of(part: str, texts: list[tuple[str, list[int]]]) -> list[set[int]]:
    """Returns the set of labels of each occurrence of `part`."""
    return [
        set(labels[found.start() : found.end()]) for text, labels in texts for found in re.finditer(re.escape(part), text)
    ]


@pytest.mark.parametrize("expected", CASES, ids=[path.parent.name for path in CASES])
def test_case(expected, tokenizers):
    from transformers import AutoTokenizer

    spec = json.loads(re.search(r"```json\n(.*?)```", expected.read_text(encoding="utf-8"), re.S).group(1))
    tokenizer = AutoTokenizer.from_pretrained(tokenizers / spec["tokenizer"])
    trajectories = sad.read_trajectories(expected.parent / spec["file"])
    assert trajectories
    if spec.get("summary"):
        options = {"format": spec.get("format"), "max_length": spec.get("max_length"), "say": print}
        assert re.search(spec["summary"], sad.encode_all(trajectories, tokenizer, **options).summary())
        with pytest.raises(sad.InputError, match=spec["or_refused"]):
            encode_with_segmentation(trajectories[0], tokenizer, max_length=spec.get("max_length"))
    texts, refused = [], []
    for trajectory in trajectories:
        try:
            # the length limit is a matter of the summary: labels are checked on whole trajectories
            encoded, segmentation = encode_with_segmentation(trajectory, tokenizer, format=spec.get("format"))
            texts.append((segmentation.text, labels_of_characters(encoded, len(segmentation.text))))
        except sad.InputError as error:
            refused.append(str(error))
    assert len(refused) <= spec.get("errors_max", 0), refused
    for kind in ("reason", "act"):
        for part in spec.get(kind, []):
            assert {int(sad.SpanKind[kind.upper()])} in kinds_of(part, texts), part
    for part in spec.get("none", []):
        assert set().union(*kinds_of(part, texts)) <= {0}, part
    for part in spec.get("context", []):
        assert kinds_of(part, texts), part
    for part in spec.get("absent", []):
        assert not kinds_of(part, texts), part
