"""Training from a teacher cache gives the same losses, logs and curriculum as training with the teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sad import SADTrainer, SpanCollator, TeacherCache
from sad.errors import InputError
from tests.sad.teacher_cache.tiny_cache import write
from tests.sad.training import tiny
from tests.sad.training.test_trainer import logged, weights

TRAIN, EVAL = tiny.examples(24), tiny.examples(7, seed=9)


@pytest.fixture(scope="module")
def caches(tmp_path_factory) -> dict[str, Path]:
    """Three caches of one teacher: all columns in float32, all columns in uint16, and 16 columns."""
    folder = tmp_path_factory.mktemp("caches")
    for name, fields in {"exact": {"top_k": 300, "dtype": "float32"}, "rounded": {"top_k": 300}, "short": {}}.items():
        write(folder / name, TRAIN + EVAL, **fields)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def cached(config):
    """Builds a trainer from a cache."""

    def build(cache, train=TRAIN, eval=EVAL, model=None, **fields) -> SADTrainer:
        model = tiny.model(seed=2) if model is None else model
        return SADTrainer(model, args=config(**fields), train_dataset=train, eval_dataset=eval, teacher_cache=cache)

    return build


@pytest.mark.parametrize("loss_from", ["hidden", "logits"])
@pytest.mark.parametrize(("name", "tolerance"), [("exact", 1e-6), ("rounded", 1e-5)])
def test_all_columns_are_the_live_teacher(trainer, cached, caches, tmp_path, loss_from, name, tolerance):
    """Compares the logs of every step, the evaluation, the weights, and the curriculum's difficulties."""
    fields = {"loss_from": loss_from, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "lambda_act": 2.0}
    fields |= {"optim": "sgd", "learning_rate": 0.5}
    live = trainer(train=TRAIN, eval=EVAL, output_dir=str(tmp_path / "live"), **fields)
    made = cached(caches[name], output_dir=str(tmp_path / "cached"), **fields)
    for run in (live, made):
        run.train()
        run.evaluate()
    assert made.teacher_model is None
    kinds, sums = ("reason", "act"), ("loss", "agreement", "teacher_entropy", "student_entropy", "tokens")
    names = [f"{what}_{kind}" for what in sums for kind in kinds]
    for name in ("loss", *names, "eval_loss", *(f"eval_{name}" for name in names)):
        assert logged(live, name) and logged(made, name) == pytest.approx(logged(live, name), rel=tolerance), name
    torch.testing.assert_close(weights(made), weights(live), rtol=0, atol=10 * tolerance)
    one, two = (json.loads((tmp_path / run / "curriculum.json").read_text()) for run in ("live", "cached"))
    assert one.pop("teacher_entropy") == pytest.approx(two.pop("teacher_entropy"), rel=1e-5)
    assert one.pop("sha256") and two.pop("sha256")
    assert one == two


def test_sixteen_columns_are_a_lower_bound_and_teach(trainer, cached, caches):
    live, made = trainer(train=TRAIN, max_steps=25), cached(caches["short"], max_steps=25)
    live.train()
    made.train()
    losses = logged(made, "loss")
    assert 0.8 * logged(live, "loss")[0] < losses[0] < logged(live, "loss")[0]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert logged(made, "teacher_entropy_act")[0] == pytest.approx(logged(live, "teacher_entropy_act")[0], rel=1e-5)


def test_workers_and_padding_do_not_change_the_loss(cached, caches):
    """DataLoader workers, a padded student head and a batch padded to a multiple give the same loss."""
    plain = cached(caches["short"])
    plain.train()
    others = (
        cached(TeacherCache(caches["short"]), dataloader_num_workers=2, dataloader_persistent_workers=True),
        cached(str(caches["short"]), model=_padded(), pad_to_multiple_of=16),
    )
    for other in others:
        other.train()
        assert logged(other, "loss") == pytest.approx(logged(plain, "loss"), rel=1e-5)


def test_adapters_learn_from_it(cached, caches):
    peft = pytest.importorskip("peft")
    plain = cached(caches["short"], model=tiny.model("llama", seed=2), max_steps=1)
    plain.train()
    lora = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj", "lm_head"], task_type="CAUSAL_LM")
    student = peft.get_peft_model(tiny.model("llama", seed=2), lora)
    made = cached(caches["short"], model=student, max_steps=20, curriculum_start=1.0, learning_rate=5e-2)
    made.train()
    assert made.evaluate()["eval_loss"] < plain.evaluate()["eval_loss"] - 0.02
    assert all("lora" in name for name, x in student.named_parameters() if x.grad is not None)


def _padded():
    """Returns the student with 20 more columns, which the softmax excludes."""
    student = tiny.model(seed=2)
    wider = tiny.model(vocabulary=320, seed=5)
    with torch.no_grad():
        state = {name: x for name, x in student.state_dict().items() if "wte" not in name and "lm_head" not in name}
        wider.load_state_dict(state, strict=False)
        wider.transformer.wte.weight[:300] = student.transformer.wte.weight
        wider.lm_head.weight[:300] = student.lm_head.weight
    return wider


def test_examples_without_a_supervised_token_need_no_rows(cached, caches):
    silent = {"input_ids": [5, 6, 7], "span_ids": [1, 0, 0]}
    batch = SpanCollator(teacher_cache=caches["short"])([silent, TRAIN[0], silent])
    assert len(batch["loss_rows"]) == len(batch["teacher_ids"]) == len(batch["teacher_entropy"]) > 0
    made = cached(caches["short"], train=[silent] * 4, eval=None, max_steps=1, curriculum=False)
    made.train()
    assert logged(made, "loss") == [0.0]


def test_rejected_configurations(cached, caches, config, tmp_path):
    write(tmp_path / "wide", TRAIN, model=tiny.model(vocabulary=320, seed=1), vocab_size=320)
    cases = [
        ({"temperature": 2.0}, "temperature"),
        ({"contrastive_weight": 0.3}, "contrastive_weight"),
        ({"max_length": 20}, "train_dataset.*missing"),
        ({"eval": {"new": tiny.examples(3, seed=77)}}, "new.*missing"),
        ({"train": iter(TRAIN)}, "iterable"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches"),
    ]
    for wrong, message in cases:
        with pytest.raises(InputError, match=message):
            cached(caches["short"], **wrong)
    with pytest.raises(InputError, match="--vocab-size 300"):
        cached(tmp_path / "wide")
    with pytest.raises(InputError, match="data_collator"):
        SADTrainer(tiny.model(), args=config(), teacher_cache=caches["short"], data_collator=SpanCollator())
    for both in ({"teacher_model": tiny.model(seed=1), "teacher_cache": caches["short"]}, {}):
        with pytest.raises(InputError, match="a teacher_model or a teacher_cache"):
            SADTrainer(tiny.model(), args=config(), train_dataset=TRAIN, **both)
