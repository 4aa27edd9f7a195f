"""Training without a teacher: the cross-entropy on the trajectories."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sad import SADTrainer
from sad.errors import InputError
from tests.sad.training import tiny
from tests.sad.training.test_losses import STEP, stepped
from tests.sad.training.test_trainer import logged, weights

DATA = tiny.examples(6)


def plain_loss(student, fields: dict) -> torch.Tensor:
    total, tokens = 0.0, 0
    lambdas = torch.tensor([0.0, fields.get("lambda_reason", 1.0), fields.get("lambda_act", 1.0)])
    for example in DATA:
        ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["span_ids"][1:])
        loss = F.cross_entropy(student(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        total, tokens = total + (lambdas[labels] * loss).sum(), tokens + int((labels > 0).sum())
    return total / tokens


@pytest.mark.parametrize("loss_from", ["hidden", "logits"])
@pytest.mark.parametrize("fields", [{}, {"lambda_act": 0.5, "temperature": 3.0}], ids=["paper", "weights"])
def test_a_step_is_the_plain_formula(config, loss_from, fields):
    """The temperature is that of the divergence, which is not there."""
    args = config(**STEP, **fields, loss_from=loss_from, ce_weight=1.0)
    made = SADTrainer(tiny.model(seed=2), args=args, train_dataset=DATA, eval_dataset=DATA)
    plain = tiny.model(seed=2)
    expected = plain_loss(plain, fields)
    assert made.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    after = stepped(plain, expected)
    made.train()
    assert logged(made, "loss")[0] == pytest.approx(expected.item(), rel=1e-5)
    assert set(logged(made, "teacher_entropy_act")) == {0.0}
    torch.testing.assert_close(weights(made), after, rtol=0, atol=2e-6)


def test_refused(config):
    for fields, where in (
        ({}, "teacher_model"),
        ({"ce_weight": 0.9}, "teacher_model"),
        ({"ce_weight": 1.0}, "curriculum_gamma"),
        ({"ce_weight": 1.0, "curriculum_gamma": 0.0, "token_weighting": "confidence"}, "token_weighting"),
        ({"ce_weight": 1.0, "curriculum_gamma": 0.0, "contrastive_weight": 0.3}, "contrastive_weight"),
    ):
        with pytest.raises(InputError) as caught:
            SADTrainer(tiny.model(), args=config(**fields), train_dataset=DATA)
        assert caught.value.where == where
