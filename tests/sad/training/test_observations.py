"""Observations in training: they have a loss with lambda_observe > 0, and change nothing without."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sad import SADTrainer, SpanCollator, TeacherCache
from sad.errors import InputError
from sad.training import difficulty
from sadkernels.spans import SpanKind
from tests.sad.teacher_cache import tiny_cache
from tests.sad.training import tiny
from tests.sad.training.test_contrastive import models, term_of
from tests.sad.training.test_losses import STEP, plain_loss, stepped
from tests.sad.training.test_trainer import logged, weights

DATA, PLAIN = tiny.examples(8, observe=True), tiny.examples(8)
TWO_STEPS = {**STEP, "max_steps": 2, "lr_scheduler_type": "constant", "lambda_act": 2.0}


def teacher():
    return tiny.model(seed=1, sharpness=30)


@pytest.fixture(scope="module")
def caches(tmp_path_factory) -> dict[bool, Path]:
    """Caches of all columns, with and without observation tokens."""
    folder = tmp_path_factory.mktemp("caches")
    for observe, data in ((True, DATA), (False, PLAIN)):
        tiny_cache.write(folder / str(observe), data, top_k=300, dtype="float32", observe=observe)
    return {observe: folder / str(observe) for observe in (True, False)}


def kinds(example: dict) -> np.ndarray:
    return np.asarray(example["span_ids"])[1:]


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cache"])
@pytest.mark.parametrize("loss_from", ["hidden", "logits"])
@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
def test_two_steps_are_the_plain_formula(config, caches, loss_from, cached, ce_weight):
    fields = {**TWO_STEPS, "lambda_observe": 0.5, "ce_weight": ce_weight, "loss_from": loss_from}
    source = {"teacher_cache": caches[True]} if cached else {"teacher_model": teacher()}
    made = SADTrainer(tiny.model(seed=2), args=config(**fields), train_dataset=DATA, eval_dataset=DATA, **source)
    plain, losses = tiny.model(seed=2), []
    for _ in range(2):
        losses.append(plain_loss(plain, teacher(), DATA, fields))
        after = stepped(plain, losses[-1])
        torch.nn.utils.vector_to_parameters(after, plain.parameters())
    evaluated = made.evaluate()
    assert evaluated["eval_loss"] == pytest.approx(losses[0].item(), rel=1e-5)
    made.train()
    assert logged(made, "loss") == pytest.approx([loss.item() for loss in losses], rel=1e-5)
    torch.testing.assert_close(weights(made), after, rtol=0, atol=5e-6)
    only = {"lambda_reason": 0.0, "lambda_act": 0.0, "lambda_observe": 1.0, "ce_weight": ce_weight}
    observed = [{**x, "span_ids": [3 if kind == 3 else 0 for kind in x["span_ids"]]} for x in DATA]
    expected = plain_loss(tiny.model(seed=2), teacher(), observed, only)
    assert logged(made, "loss_observe")[0] == pytest.approx(expected.item(), rel=1e-5)
    assert logged(made, "tokens_observe") == [sum(int((kinds(x) == 3).sum()) for x in DATA)] * 2
    assert all(0 <= share <= 1 for share in logged(made, "agreement_observe"))
    assert logged(made, "teacher_entropy_observe")
    assert evaluated["eval_loss_observe"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("loss_from", ["hidden", "logits"])
def test_without_a_weight_their_labels_change_nothing(trainer, loss_from):
    """The same bits as with data without their labels, and no entry in the log."""
    fields = {"loss_from": loss_from, "curriculum": False}
    runs = [trainer(tiny.model(seed=2), teacher(), data, data, **fields) for data in (DATA, PLAIN)]
    for run in runs:
        run.train()
        run.evaluate()
        assert not [name for entry in run.state.log_history for name in entry if "observe" in name]
    assert logged(runs[0], "loss") == logged(runs[1], "loss") and logged(runs[0], "eval_loss") == logged(
        runs[1], "eval_loss"
    )
    assert torch.equal(*map(weights, runs))


def test_rows_of_a_batch_and_of_a_cache(caches):
    batch = SpanCollator(observe=True, teacher_cache=caches[True])(DATA)
    expected = torch.nn.functional.pad(batch["span_ids"][:, 1:], (0, 1)).flatten().nonzero()[:, 0]
    assert torch.equal(batch["loss_rows"], expected)
    assert len(batch["teacher_ids"]) == len(expected) == TeacherCache(caches[True]).rows
    plain = SpanCollator()(DATA)
    assert torch.equal(plain["loss_rows"], SpanCollator()(PLAIN)["loss_rows"]) and len(plain["loss_rows"]) < len(expected)


def test_the_teacher_s_entropy_is_that_of_all_supervised_tokens(trainer, config, caches, tmp_path):
    """Live and from a cache. A run whose stored entropies have other tokens is refused."""
    fields = {"lambda_observe": 0.5, "curriculum": True}
    live = trainer(tiny.model(seed=2), teacher(), DATA, output_dir=str(tmp_path / "live"), **fields)
    cached = SADTrainer(tiny.model(seed=2), args=config(**fields), train_dataset=DATA, teacher_cache=caches[True])
    stored = []
    for run in (live, cached):
        run.train()
        stored.append(json.loads(Path(run.args.output_dir, difficulty.FILE_NAME).read_text()))
    with torch.no_grad():
        rows = [teacher().eval()(torch.tensor([x["input_ids"]])).logits[0, :-1] for x in DATA]
    means = [torch.distributions.Categorical(logits=row[kinds(x) > 0]).entropy().mean().item() for row, x in zip(rows, DATA)]
    for record in stored:
        assert record["teacher_entropy"] == pytest.approx(means, rel=1e-4)
        assert record["act_tokens"] == [int((kinds(x) == 2).sum()) for x in DATA]  # eq. 7 counts what the model wrote
        assert record["observe"] is True
    with pytest.raises(InputError, match="measured with lambda_observe of 0, got those with lambda_observe above 0"):
        trainer(tiny.model(seed=2), teacher(), DATA, output_dir=str(tmp_path / "live")).train()


def test_the_contrastive_term_has_a_third_kind(trainer):
    fields = {**STEP, "contrastive_weight": 0.3, "contrastive_temperature": 0.2}
    found = {}
    for weight in (0.0, 0.5):
        made = trainer(*models(), DATA, lambda_observe=weight, **fields)
        present = tuple(SpanKind(kind) for kind in ((1, 2, 3) if weight else (1, 2)))
        expected = term_of(made, DATA, 0.2, present)
        made.train()
        found[weight] = logged(made, "contrastive_loss")[0]
        assert found[weight] == pytest.approx(expected, rel=2e-5)
    assert found[0.0] != pytest.approx(found[0.5], rel=1e-4)


def test_refused(trainer, config, caches):
    for weight, has in ((0.5, False), (0.0, True)):
        data = DATA if weight else PLAIN
        with pytest.raises(InputError, match="teacher_cache: expected a cache with") as caught:
            SADTrainer(tiny.model(), args=config(lambda_observe=weight), train_dataset=data, teacher_cache=caches[has])
        assert caught.value.expected.startswith(f"a cache {'with' if weight else 'without'} observation tokens")
    with pytest.raises(InputError, match=r"train_dataset: expected observation tokens .* got none\..*observe=True"):
        trainer(train=PLAIN, lambda_observe=0.5)
    with pytest.raises(InputError, match=r"data_collator: expected SpanCollator\(observe=True\)"):
        SADTrainer(tiny.model(), teacher(), config(lambda_observe=0.5), train_dataset=DATA, data_collator=SpanCollator())


def test_a_cache_of_an_older_version_is_one_without_observations(caches, tmp_path):
    """The metadata of a cache without observations have no new field."""
    index = json.loads((caches[False] / "index.json").read_text())
    assert "observe" not in index and not TeacherCache(caches[False]).metadata.observe
    assert TeacherCache(caches[True]).metadata.observe
    both = [TeacherCache(caches[has]).metadata for has in (False, True)]
    assert both[0] == dataclasses.replace(both[1], observe=False)
