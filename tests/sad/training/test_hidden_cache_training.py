"""Training from cached hidden states is training with the teacher: every divergence, temperature, weight and term."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from sad import SADTrainer, SpanCollator, TeacherCache
from sad.errors import InputError
from tests.sad.teacher_cache import tiny_cache
from tests.sad.training import tiny
from tests.sad.training.test_teacher_cache_training import _padded
from tests.sad.training.test_trainer import logged, weights

TRAIN, EVAL = tiny.examples(16), tiny.examples(5, seed=9)
OBSERVED = tiny.examples(16, observe=True)
SGD = {"optim": "sgd", "learning_rate": 0.5, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
CASES = {
    "plain": {"lambda_act": 2.0},
    "jsd, contrastive": {"divergence": "jsd", "beta": 0.3, "temperature": 2.0, "contrastive_weight": 0.3},
    "reverse, ce, confidence": {
        "divergence": "reverse_kl", "temperature": 0.5, "ce_weight": 0.4, "token_weighting": "confidence",
        "turn_balance": "decay",
    },
    "observe, divergence of the turn": {"lambda_observe": 0.5, "token_weighting": "step_divergence"},
}  # fmt: skip


def teacher(family: str = "llama"):
    return tiny.model(family, seed=1, sharpness=30)


@pytest.fixture(scope="module")
def caches(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("caches")
    tiny_cache.write_hidden(folder / "exact", TRAIN + EVAL, teacher())
    tiny_cache.write_hidden(folder / "observe", OBSERVED, teacher(), observe=True)
    tiny_cache.write_hidden(folder / "rounded", TRAIN + EVAL, teacher(), dtype="bfloat16")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def cached(config):
    """Builds a trainer from a cache."""

    def build(cache, train=TRAIN, eval=EVAL, model=None, **fields) -> SADTrainer:
        model = tiny.model(seed=2) if model is None else model
        return SADTrainer(model, args=config(**fields), train_dataset=train, eval_dataset=eval, teacher_cache=cache)

    return build


@pytest.mark.parametrize(
    ("loss_from", "case"), [*(("hidden", case) for case in CASES), ("logits", "reverse, ce, confidence")]
)
def test_it_is_the_live_teacher(trainer, cached, caches, tmp_path, loss_from, case):
    """Every number of the logs, the evaluation, the weights, and the curriculum's difficulties."""
    observe = "lambda_observe" in CASES[case]
    data = {"train": OBSERVED if observe else TRAIN, "eval": None if observe else EVAL}
    fields = SGD | CASES[case] | {"loss_from": loss_from, "max_steps": 2}
    live = trainer(**data, teacher=teacher(), output_dir=str(tmp_path / "live"), **fields)
    made = cached(caches["observe" if observe else "exact"], **data, output_dir=str(tmp_path / "cached"), **fields)
    assert made.teacher_model is None
    for run in (live, made):
        run.train()
        if not observe:
            run.evaluate()
    unlike = ("runtime", "per_second", "gib", "memory", "flos", "grad_norm")
    for ours, theirs in zip(made.state.log_history, live.state.log_history, strict=True):
        assert ours.keys() == theirs.keys()
        for name in (name for name in ours if not any(part in name for part in unlike)):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6, abs=1e-6), name
    assert_close(weights(made), weights(live), rtol=0, atol=1e-6)
    one, two = (
        json.loads((tmp_path / run / "curriculum.json").read_text())["teacher_entropy"] for run in ("live", "cached")
    )
    assert one == pytest.approx(two, rel=1e-5)


def test_rounding_to_bfloat16_changes_the_loss_little(trainer, cached, caches):
    live, made = trainer(train=TRAIN, teacher=teacher(), **SGD), cached(caches["rounded"], **SGD)
    for run in (live, made):
        run.train()
    difference = max(abs(a - b) for a, b in zip(logged(made, "loss"), logged(live, "loss")))
    assert 0 < difference < 5e-3
    assert TeacherCache(caches["rounded"]).head().weight.dtype == torch.float32  # only the states are rounded


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "mixed precision"])
def test_a_teacher_in_bfloat16(trainer, cached, tmp_path, bf16):
    """Its states and its head are stored as they are. The forward of a batch of other lengths rounds differently."""
    model = teacher().to(torch.bfloat16)
    tiny_cache.write_hidden(tmp_path / "cache", TRAIN, model, dtype="bfloat16", teacher_dtype="bfloat16")
    fields = {"eval": None, "bf16": bf16, "max_steps": 2}
    live, made = trainer(train=TRAIN, teacher=model, **fields), cached(tmp_path / "cache", **fields)
    for run in (live, made):
        run.train()
    assert TeacherCache(tmp_path / "cache").head().weight.dtype == torch.bfloat16
    assert logged(made, "loss") == pytest.approx(logged(live, "loss"), rel=5e-3)


def test_a_padded_head_workers_and_logits_for_metrics(trainer, cached, caches):
    """A student with more columns; rows from worker processes; an evaluation that reads logits."""
    live = trainer(train=TRAIN, eval=EVAL, teacher=teacher(), **SGD)
    made = cached(caches["exact"], model=_padded(), dataloader_num_workers=1, pad_to_multiple_of=16, **SGD)
    for run in (live, made):
        run.train()
    assert logged(made, "loss") == pytest.approx(logged(live, "loss"), rel=1e-5)
    found, expected = made.predict(EVAL), live.predict(EVAL)
    assert found.predictions.shape[-1] == 320 and expected.predictions.shape[-1] == 300
    assert found.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], rel=1e-5)


def test_a_student_that_cannot_be_split(trainer, cached, caches):
    def whole():
        made = tiny.model(seed=2)
        made.get_output_embeddings = lambda: None
        return made

    live = trainer(train=TRAIN, teacher=teacher(), model=whole(), max_steps=2)
    made = cached(caches["exact"], model=whole(), max_steps=2)
    for run in (live, made):
        run.train()
    assert logged(made, "loss") == pytest.approx(logged(live, "loss"), rel=1e-6)
    with pytest.raises(InputError, match="contrastive_weight"):
        cached(caches["exact"], model=whole(), contrastive_weight=0.3)


def test_a_batch_and_examples_without_a_supervised_token(cached, caches):
    silent = {"input_ids": [5, 6, 7], "span_ids": [1, 0, 0]}
    batch = SpanCollator(teacher_cache=caches["rounded"])([silent, TRAIN[0]])
    assert batch["teacher_hidden"].shape == (len(batch["loss_rows"]), 32)
    assert batch["teacher_hidden"].dtype == torch.bfloat16 and "teacher_ids" not in batch
    made = cached(caches["exact"], train=[silent] * 4, eval=None, max_steps=1, curriculum=False)
    made.train()
    assert logged(made, "loss") == [0.0]
    assert not any(math.isnan(x) for x in weights(made).tolist())


def test_a_damaged_head_and_other_configurations_are_refused_before_training(cached, caches, config, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in caches["exact"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    changed = bytearray((copy / "head.safetensors").read_bytes())
    changed[-9] ^= 1
    (copy / "head.safetensors").write_bytes(changed)
    with pytest.raises(InputError, match=r"head\.safetensors.*other numbers"):
        cached(copy)
    with pytest.raises(InputError, match="with observation tokens"):
        cached(caches["exact"], train=OBSERVED, lambda_observe=0.5)
    with pytest.raises(InputError, match="--vocab-size 290"):
        cached(caches["exact"], model=tiny.model(vocabulary=290))
    collator = SpanCollator(teacher_cache=caches["rounded"], max_length=96)
    with pytest.raises(InputError, match="the same teacher cache"):
        SADTrainer(tiny.model(), args=config(), teacher_cache=caches["exact"], data_collator=collator)
