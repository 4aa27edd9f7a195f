"""Lengths and labels of a study's lessons, for its report (the paper's Fig. 7 and 8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sad
from sad import models
from sad.study.assets import Assets
from sad.study.cells import combinations
from sad.study.config import Study
from sad.study.labels import relabel
from sad.study.methods import LABELS
from sad.trajectories.inspection import inspect_trajectories
from sad.trajectories.spans import SpanKind


def exhibits(study: Study, folder: Path) -> dict[str, dict[str, Any]]:
    """Returns what the report shows of the lessons of each environment.

    Args:
        study: The study.
        folder: Its folder. An environment without lessons is left out.

    Returns:
        The name of an environment to:

        * `trajectories`: number of lessons.
        * `lengths`: "reason", "act" and "observe" to the tokens of every span of this kind.
        * `example`: the first lesson, with `id`, `text`, `offsets` (character range of each token) and `span_ids`, which
          has the span id of each token under each kind of labels. Id 0 is a token without a loss.
    """
    found = {}
    for name in dict.fromkeys(environment for environment, *_ in combinations(study)):
        assets = Assets(folder, name, study.environments[name])
        if assets.lessons_path.exists() and assets.teacher_path.exists():
            found[name] = _exhibit(assets, study.environments[name].max_length, study.seeds[0])
    return found


def _exhibit(assets: Assets, max_length: int, seed: int) -> dict[str, Any]:
    tokenizer = models.load_tokenizer("teacher", str(assets.teacher_path))
    found = inspect_trajectories(sad.read_jsonl(assets.lessons_path), tokenizer, max_length=max_length, keep=1)
    trajectory, segmentation, encoded = found.kept[0]
    lesson = {"input_ids": encoded.input_ids, "span_ids": encoded.span_ids}
    labels = {name: relabel([lesson], name, seed)[0]["span_ids"] for name in LABELS}
    labels["spans"] = [0 if kind == SpanKind.OBSERVE else kind for kind in labels["spans"]]  # SAD has no loss on them
    return {
        "trajectories": found.lengths.trajectories,
        "lengths": {
            "reason": found.lengths.per_span[SpanKind.REASON],
            "act": found.lengths.per_span[SpanKind.ACT],
            "observe": found.lengths.per_span[SpanKind.OBSERVE],
        },
        "example": {
            "id": trajectory.id,
            "text": segmentation.text,
            "offsets": [list(pair) for pair in encoded.offsets],
            "span_ids": labels,
        },
    }
