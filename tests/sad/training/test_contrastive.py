"""The contrastive term against its formula, and in training."""

from __future__ import annotations

import math

import pytest
import torch

from sad.errors import InputError
from sad.model_parts import Head
from sad.training.contrastive import directions, info_nce
from sadkernels.spans import SpanKind
from tests.sad.training import tiny
from tests.sad.training.test_trainer import _StopAt, logged, weights

KINDS = (SpanKind.REASON, SpanKind.ACT)
IDS = torch.tensor([[1, 1, 0, 2, 2, 0], [0, 1, 2, 2, 1, 0], [2, 0, 0, 0, 2, -100], [0, 0, 0, 0, 0, 0]], dtype=torch.int8)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(1)


def models() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Returns a student, and a teacher of another family with a padded head."""
    return tiny.model("gpt2", seed=2), tiny.model("llama", vocabulary=320, seed=1, sharpness=30)


def formula(student, teacher, span_ids, temperature: float, kinds=KINDS) -> torch.Tensor:
    """Computes the term item by item. `student` and `teacher` hold the logits (T, V) of each trajectory."""
    terms = []
    for kind in kinds:
        rows = [[t for t in range(len(ids) - 1) if ids[t + 1] == kind] for ids in span_ids]
        have = [i for i, found in enumerate(rows) if found]
        ours, theirs = ({i: side[i][rows[i]].mean(0) for i in have} for side in (student, teacher))
        for i in have if len(have) > 1 else []:
            a = ours[i] - ours[i].mean()
            cosines = [torch.cosine_similarity(a, theirs[j] - theirs[j].mean(), dim=0) for j in have]
            scores = torch.stack(cosines).double() / temperature
            terms.append(scores.logsumexp(0) - scores[have.index(i)])
    return torch.stack(terms).mean() if terms else torch.tensor(0.0)


def term_of(made, batch_of_examples, temperature: float, kinds=KINDS) -> float:
    """Computes the formula for models and examples, without padding, in float64."""
    sides = [[], []]
    for side, whole in zip(sides, (made.model, made.teacher_model)):
        for example in batch_of_examples:
            with torch.no_grad():
                side.append(whole.eval()(torch.tensor([example["input_ids"]])).logits[0, :, :300].double())
    return formula(*sides, [example["span_ids"] for example in batch_of_examples], temperature, kinds).item()


def heads() -> tuple[Head, Head]:
    """Returns heads of widths 5 and 7. One has a bias, a scale and a padded row."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = [torch.randn(*shape).double() for shape in ((11, 5), (12, 7), (12,))]
    return Head(weights[0], None, 1.0, None), Head(*weights[1:], 0.5, None)


def term(hidden: torch.Tensor, teacher_hidden: torch.Tensor, kinds=KINDS) -> torch.Tensor:
    ours, theirs = heads()
    targets, present = directions(teacher_hidden, theirs, IDS, 11, kinds)
    return info_nce(directions(hidden, ours, IDS, 11, kinds)[0], targets, present, 0.07)


@pytest.mark.parametrize("kinds", [KINDS, KINDS[1:]], ids=["both", "actions"])
def test_formula_and_gradient(kinds):
    """Covers different widths, a padded head, and trajectories without one or both kinds, in float64."""
    hidden, teacher_hidden = torch.randn(4, 6, 5).double().requires_grad_(), torch.randn(4, 6, 7).double()
    ours, theirs = heads()
    expected = formula(ours.logits(hidden), theirs.logits(teacher_hidden)[..., :11], IDS.tolist(), 0.07, kinds)
    torch.testing.assert_close(term(hidden, teacher_hidden, kinds), expected, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda x: term(x, teacher_hidden, kinds), hidden)


def test_rows_of_no_kind_are_not_read():
    hidden, teacher_hidden = torch.randn(4, 6, 5).double(), torch.randn(4, 6, 7).double()
    clean = term(hidden, teacher_hidden)
    unread = torch.ones(4, 6, dtype=torch.bool)
    unread[:, :-1] = ~((IDS[:, 1:] == 1) | (IDS[:, 1:] == 2))
    hidden[unread], teacher_hidden[unread] = torch.nan, torch.inf
    hidden.requires_grad_()
    found = term(hidden, teacher_hidden)
    found.backward()
    assert torch.equal(found, clean)
    assert torch.equal(hidden.grad[unread], torch.zeros_like(hidden.grad[unread])) and hidden.grad.isfinite().all()


def test_a_student_that_is_the_teacher_finds_its_trajectories():
    """The cosine with its own trajectory is 1. The term is below that of equal scores, and near 0 at a low temperature."""
    hidden, head = torch.randn(4, 6, 7).double(), heads()[1]
    own, present = directions(hidden, head, IDS, 11, KINDS)
    torch.testing.assert_close((own * own).sum(-1)[present], torch.ones(5).double())
    assert info_nce(own, own, present, 0.01) < 1e-3 < info_nce(own, own, present, 1.0) < math.log(3)


def test_a_step_is_the_kl_plus_the_term(trainer):
    """Heads of two sizes and widths. The term trains the backbone and not the student's head."""
    data, runs = tiny.examples(8), {}
    for weight in (0.0, 0.3):
        fields = {"contrastive_weight": weight, "contrastive_temperature": 0.2, "max_steps": 1, "lambda_reason": 0.0}
        fields |= {"per_device_train_batch_size": 8, "optim": "sgd", "learning_rate": 0.5, "warmup_steps": 0}
        runs[weight] = trainer(*models(), data, max_grad_norm=0.0, **fields)
        expected = term_of(runs[weight], data, 0.2, KINDS[1:])  # reasoning has no weight
        runs[weight].train()
    plain, log = (run.state.log_history[0] for run in runs.values())
    assert "contrastive_loss" not in plain and log["contrastive_loss"] == pytest.approx(expected, rel=1e-4)
    assert log["loss"] == pytest.approx(plain["loss"] + 0.3 * expected, rel=1e-5)
    models_after = [run.model for run in runs.values()]
    torch.testing.assert_close(models_after[0].lm_head.weight, models_after[1].lm_head.weight, rtol=0, atol=1e-7)
    change = (models_after[0].transformer.wpe.weight - models_after[1].transformer.wpe.weight).abs().max()
    assert change > 1e-4


def test_accumulated_batches_weigh_the_same(trainer):
    """The term of a step is the mean over its batches. A trajectory alone in its batch has term 0."""
    data = tiny.examples(4)
    fields = {"contrastive_weight": 0.5, "max_steps": 1, "curriculum": False, "gradient_accumulation_steps": 2}
    made, batches = trainer(*models(), data, per_device_train_batch_size=2, **fields), []
    inner = made.data_collator
    made.data_collator = lambda examples: batches.append(examples) or inner(examples)
    made.train()
    fresh = trainer(*models(), data)
    expected_of = [term_of(fresh, batch, 0.07) for batch in batches[:2]]
    assert expected_of[0] != pytest.approx(expected_of[1], rel=1e-3)
    assert logged(made, "contrastive_loss") == [pytest.approx(sum(expected_of) / 2, rel=1e-4)]
    alone = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    runs = [trainer(*models(), data, **{**fields, **alone, "contrastive_weight": weight}) for weight in (0.0, 0.5)]
    for run in runs:
        run.train()
    assert logged(runs[1], "contrastive_loss") == [0.0] and torch.equal(weights(runs[0]), weights(runs[1]))


def test_it_is_learnt_and_resumes_to_the_same_bits(trainer, tmp_path):
    """Runs under autocast to bfloat16, which does not apply to the pooling."""
    fields = {"contrastive_weight": 0.3, "bf16": True, "max_steps": 24, "per_device_train_batch_size": 8}
    fields |= {"save_strategy": "steps", "save_steps": 12, "save_total_limit": None, "curriculum": False}
    whole = trainer(*models(), output_dir=str(tmp_path / "whole"), **fields)
    whole.train()
    losses = logged(whole, "contrastive_loss")
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    first = trainer(*models(), output_dir=str(tmp_path / "cut"), **fields)
    first.add_callback(_StopAt(12))
    first.train()
    second = trainer(tiny.model(seed=7), models()[1], output_dir=str(tmp_path / "cut"), **fields)
    second.train(resume_from_checkpoint=True)
    assert torch.equal(weights(second), weights(whole)) and logged(second, "contrastive_loss") == losses


def test_refused(trainer, config):
    for fields, name in (
        ({"contrastive_weight": -0.1}, "contrastive_weight"),
        ({"contrastive_temperature": 0.0}, "contrastive_temperature"),
        ({"contrastive_weight": 0.3, "loss_from": "logits"}, "contrastive_weight"),
    ):
        with pytest.raises(InputError) as caught:
            config(**fields)
        assert caught.value.where == name
    teacher = tiny.model(seed=1)
    teacher.lm_head = torch.nn.Sequential(teacher.lm_head)
    with pytest.raises(InputError, match="contrastive_weight: expected a loss from hidden states"):
        trainer(teacher=teacher, contrastive_weight=0.3)
