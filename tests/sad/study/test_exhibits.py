"""The report shows the lengths and the labels of the lessons as the students see them."""

from __future__ import annotations

from pathlib import Path

import sad
from sad.report.study import page
from sad.scratch.models import train_tokenizer
from sad.study.assets import Assets
from sad.study.config import Study, build
from sad.study.exhibits import exhibits
from sad.study.labels import relabel
from sad.trajectories.inspection import summarize
from tests.sad.report.example_study import MEASURED, SUMMARY
from tests.sad.study.tiny import TINY

TEXT = "You see a mug.\nReasoning: I take it and then leave.\nAction: take mug\nOk.\nReasoning: I go.\nAction: go\n"
HOUSEHOLD = TINY["environments"]["household"]
PLAIN = {**TINY, "environments": {"household": HOUSEHOLD, "unprepared": HOUSEHOLD}, "seeds": [3]}


def test_exhibits_are_the_lessons_with_their_labels(tmp_path: Path) -> None:
    study = build(Study, PLAIN, "study")
    assets = Assets(tmp_path, "household", study.environments["household"])
    assets.lessons_path.parent.mkdir()
    lessons = [sad.Trajectory(id=name, text=TEXT, format="sad") for name in ("one", "two")]
    sad.write_jsonl(assets.lessons_path, lessons)
    tokenizer = train_tokenizer([TEXT] * 3, 300)
    tokenizer.save_pretrained(assets.teacher_path)

    found = exhibits(study, tmp_path)
    assert list(found) == ["household"]
    lesson, example = found["household"], found["household"]["example"]
    seen = assets.lessons(tokenizer)
    for kind, name in ((1, "reason"), (2, "act"), (3, "observe")):
        assert sum(lesson["lengths"][name]) == sum(one["span_ids"].count(kind) for one in seen)
    assert summarize(lesson["lengths"]["reason"]).count == 4 and lesson["trajectories"] == 2
    assert (example["id"], example["text"], len(example["offsets"])) == ("one", TEXT, len(seen[0]["input_ids"]))
    labels = example["span_ids"]
    assert labels["all"] == relabel(seen, "all", 3)[0]["span_ids"]
    assert labels["random"] == relabel(seen, "random", 3)[0]["span_ids"] != labels["spans"]
    assert labels["spans"] == [kind if kind < 3 else 0 for kind in seen[0]["span_ids"]]
    made = page(SUMMARY, MEASURED, found)
    assert "I take it" in made.replace("</span>", "").replace('<span class="r0">', "").replace('<span class="r1">', "")
