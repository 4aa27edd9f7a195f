"""The options of the loss, through the trainer, against plain PyTorch."""

from __future__ import annotations

import logging
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2LMHeadModel

from sad import SADTrainer
from sad.errors import InputError
from sad.training.losses import LogitsLoss
from tests.processes import run_two
from tests.sad.teacher_cache import tiny_cache
from tests.sad.training import tensor_parallel_worker as worker
from tests.sad.training import tiny
from tests.sad.training.test_trainer import logged, weights

STEP = {"max_steps": 1, "per_device_train_batch_size": 8, "optim": "sgd", "learning_rate": 0.5, "warmup_steps": 0}
STEP |= {"max_grad_norm": 0.0, "curriculum": False}


def divergence_of(name: str, p: torch.Tensor, q: torch.Tensor, beta: float) -> torch.Tensor:
    """The divergence of teacher log-probabilities p and student log-probabilities q, (..., V) to (...)."""
    kl = lambda a, b: (a.exp() * (a - b)).sum(-1)  # noqa: E731
    if name == "jsd":
        mixture = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
        return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)
    return kl(p, q) if name == "forward_kl" else kl(q, p)


def plain_loss(student, teacher, examples, fields: dict) -> torch.Tensor:
    """The loss of a step over all examples, one at a time, in float32 with log_softmax."""
    total, tokens = 0.0, 0
    weight, temperature = fields.get("ce_weight", 0.0), fields.get("temperature", 1.0)
    for example in examples:
        ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["span_ids"][1:])
        logits = student(ids).logits[0, :-1, :300]
        with torch.no_grad():
            p = F.log_softmax(teacher.eval()(ids).logits[0, :-1, :300] / temperature, -1)
        q = F.log_softmax(logits / temperature, -1)
        loss = (1 - weight) * divergence_of(fields.get("divergence", "forward_kl"), p, q, fields.get("beta", 0.5))
        loss = loss + weight * F.cross_entropy(logits, ids[0, 1:], reduction="none")
        observe = fields.get("lambda_observe", 0.0)
        lambdas = torch.tensor([0.0, fields.get("lambda_reason", 1.0), fields.get("lambda_act", 1.0), observe])[labels]
        supervised = (labels == 1) | (labels == 2) | ((labels == 3) & (observe > 0))
        total, tokens = total + (lambdas * loss).sum(), tokens + int(supervised.sum())
    return total / tokens


def stepped(student, loss: torch.Tensor, rate: float = 0.5) -> torch.Tensor:
    """The student's weights after one step of SGD."""
    gradients = torch.autograd.grad(loss, list(student.parameters()), allow_unused=True)
    pairs = zip(student.parameters(), gradients)
    return torch.cat([(x if g is None else x - rate * g).detach().flatten() for x, g in pairs])


@pytest.mark.parametrize("loss_from", ["hidden", "logits"])
@pytest.mark.parametrize(
    "fields",
    [
        {"divergence": "reverse_kl"},
        {"divergence": "reverse_kl", "temperature": 2.0, "lambda_act": 2.0},
        {"divergence": "jsd", "beta": 0.3},
        {"temperature": 3.0},
        {"ce_weight": 0.25},
        {"ce_weight": 1.0},
        {"ce_weight": 0.4, "divergence": "jsd", "temperature": 2.0, "lambda_reason": 0.5},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_a_step_is_the_plain_formula(trainer, loss_from, fields):
    """The loss, the logged mean, the evaluation, and the weights after a step; heads of two sizes."""
    data, teacher = tiny.examples(8), tiny.model(seed=1, vocabulary=320, sharpness=30)
    expected = plain_loss(tiny.model(seed=2), teacher, data, fields)
    student = tiny.model(seed=2)
    made = trainer(student, teacher, data, eval=data, loss_from=loss_from, **STEP, **fields)
    assert made.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    after = stepped(plain := tiny.model(seed=2), plain_loss(plain, teacher, data, fields))
    made.train()
    assert logged(made, "loss")[0] == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(weights(made), after, rtol=0, atol=2e-6)


@pytest.mark.parametrize("loss_from", ["hidden", "logits"])
def test_a_cache_mixes_in_the_cross_entropy(trainer, config, tmp_path, loss_from):
    """All columns of the teacher in the cache, so that the loss is that of the live teacher."""
    data, fields = tiny.examples(8), {**STEP, "ce_weight": 0.3, "loss_from": loss_from}
    cache = tmp_path / "cache"
    tiny_cache.write(cache, data, top_k=300, dtype="float32")
    live = trainer(train=data, **fields)
    made = SADTrainer(tiny.model(seed=2), args=config(**fields), train_dataset=data, teacher_cache=cache)
    for run in (live, made):
        run.train()
    for name in ("loss", "loss_reason", "loss_act", "agreement_act", "teacher_entropy_act"):
        assert logged(made, name) == pytest.approx(logged(live, name), rel=1e-5)
    torch.testing.assert_close(weights(made), weights(live), rtol=0, atol=2e-6)


class Scaled(GPT2LMHeadModel):
    """A model whose configuration does not tell what it does to its logits."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.logits = 2.0 * torch.tanh(0.5 * outputs.logits / 2.0)
        return outputs


def scaled(seed: int, sharpness: float = 1.0) -> Scaled:
    model = tiny.model(seed=seed, sharpness=sharpness)
    model.__class__ = Scaled
    return model


def test_scale_and_softcap_describe_a_head(trainer):
    data, teacher = tiny.examples(8), scaled(1, sharpness=30)
    head = {"logit_scale": 0.5, "logit_softcap": 2.0}
    with pytest.raises(InputError, match="loss_from"):
        trainer(scaled(2), teacher, data, loss_from="hidden", **STEP)
    with pytest.raises(InputError, match="loss_from"):
        trainer(scaled(2), teacher, data, loss_from="hidden", **STEP, logit_scale=0.4, logit_softcap=2.0)
    expected = plain_loss(scaled(2), teacher, data, {})
    made = trainer(scaled(2), teacher, data, loss_from="hidden", **STEP, **head)
    made.train()
    assert logged(made, "loss")[0] == pytest.approx(expected.item(), rel=1e-5)
    after = stepped(plain := scaled(2), plain_loss(plain, teacher, data, {}))
    torch.testing.assert_close(weights(made), after, rtol=0, atol=2e-6)


def test_tensor_parallel_processes_are_one(tmp_path):
    """Two processes that share each model: whole logits, logits sharded over the vocabulary, and hidden states."""
    worker.save_models(tmp_path)
    run_two("tests.sad.training.tensor_parallel_worker", tmp_path)
    found = torch.load(tmp_path / "result.pt")
    for message, name in zip(found.pop("refused"), ("ce_weight: ", "teacher_model: "), strict=True):
        assert message.startswith(name)
    alone = worker.record(worker.trainer(tmp_path, tmp_path / "alone"))
    assert found.keys() == {"whole logits", "sharded logits", "hidden"}
    for result in found.values():
        assert result["columns"] == (150 if result is found["sharded logits"] else 300)
        for theirs, ours in zip(result["logs"], alone["logs"], strict=True):
            assert theirs == pytest.approx(ours, rel=1e-5)
        assert result["eval"] == pytest.approx(alone["eval"], rel=1e-5)
        torch.testing.assert_close(result["weights"], alone["weights"], rtol=0, atol=1e-5)
        assert result["entropy"] == pytest.approx(alone["entropy"], rel=1e-5)


@pytest.mark.parametrize("method", ["get_cp_size", "get_sp_size"])
def test_split_sequences_are_refused(trainer, monkeypatch, method):
    """accelerate splits them only on GPUs, so the size is set here."""
    monkeypatch.setattr(SADTrainer, method, lambda self: 2)
    with pytest.raises(InputError, match=r"on each device, got a split sequence.*that of the next token"):
        trainer()


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_a_plan_that_splits_sequences_is_refused(trainer, name):
    models = {"student": tiny.model("llama", seed=2), "teacher": tiny.model("llama", seed=1)}
    models[name].tp_plan = {"model.norm": "sequence_parallel"}
    with pytest.raises(InputError, match=f"got a tp_plan of the {name} with sequence_parallel"):
        trainer(models["student"], models["teacher"])


def test_refused(trainer, config, tmp_path):
    for fields, name in (
        ({"divergence": "kl"}, "divergence"),
        ({"beta": 0.0}, "beta"),
        ({"beta": 1.0}, "beta"),
        ({"ce_weight": -0.1}, "ce_weight"),
        ({"ce_weight": 1.1}, "ce_weight"),
        ({"logit_scale": 0.0}, "logit_scale"),
        ({"logit_softcap": -1.0}, "logit_softcap"),
        ({"logit_softcap": 30.0, "loss_from": "logits"}, "logit_softcap"),
    ):
        with pytest.raises(InputError) as caught:
            config(**fields)
        assert caught.value.where == name
    tiny_cache.write(tmp_path / "cache", data := tiny.examples(4))
    with pytest.raises(InputError, match="divergence: expected forward_kl"):
        SADTrainer(tiny.model(), args=config(divergence="jsd"), train_dataset=data, teacher_cache=tmp_path / "cache")


def test_teacher_is_the_old_name_of_teacher_model(config):
    student, teacher, data = tiny.model(seed=2), tiny.model(seed=1), tiny.examples(4)
    with pytest.warns(DeprecationWarning, match="teacher_model"):
        made = SADTrainer(student, teacher=teacher, args=config(), train_dataset=data)
    assert made.teacher_model is teacher
    with pytest.raises(InputError, match="both"):
        SADTrainer(student, teacher, config(), data, teacher=teacher)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_hidden_states_and_logits_train_the_same(trainer, family):
    runs = {}
    for loss_from in ("hidden", "logits"):
        parts = tiny.model(family, seed=2), tiny.model(family, vocabulary=320, seed=1, sharpness=30)
        runs[loss_from] = trainer(*parts, loss_from=loss_from, loss_chunk_bytes=20_000, optim="sgd", learning_rate=0.5)
        runs[loss_from].train()
    for name in ("loss", "loss_reason", "loss_act", "agreement_act"):
        assert logged(runs["hidden"], name) == pytest.approx(logged(runs["logits"], name), rel=1e-5), name
    torch.testing.assert_close(weights(runs["hidden"]), weights(runs["logits"]), rtol=0, atol=1e-6)


def test_hidden_states_need_no_logits(trainer, monkeypatch):
    made = trainer(curriculum_gamma=0.0)  # entropies come from logits
    for name in ("model", "teacher_model"):
        head = getattr(made, name).lm_head
        monkeypatch.setattr(head, "forward", lambda *_: pytest.fail("the head was called"))
    made.train()


def test_rows_come_from_the_collator(trainer, monkeypatch):
    """`nonzero` would synchronize a GPU."""
    made = trainer()
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda *_: pytest.fail("the rows were searched"))
    made.train()


def test_a_model_that_cannot_be_split(trainer, caplog):
    teacher = tiny.model(seed=1)
    teacher.lm_head = torch.nn.Sequential(teacher.lm_head)
    with pytest.raises(InputError, match="a teacher without them: its head is a Sequential"):
        trainer(teacher=teacher, loss_from="hidden")
    with caplog.at_level(logging.WARNING):
        logging.getLogger("sad").propagate = True
        made = trainer(teacher=teacher)
    assert isinstance(made._span_loss, LogitsLoss)
    made.train()


@pytest.mark.parametrize(("fields", "warns"), [({"loss_from": "logits"}, True), ({}, False)], ids=["logits", "hidden"])
def test_16_bit_logits_are_warned_about_once(trainer, caplog, fields, warns):
    logging.Logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        logging.getLogger("sad").propagate = True
        trainer(bf16=True, max_steps=2, **fields).train()
    assert sum("logits in 16 bits" in message for message in caplog.messages) == int(warns)


def test_evaluation_with_metrics_sees_logits(trainer):
    seen = []
    made = trainer(eval=tiny.examples())
    made.compute_metrics = lambda result: seen.append(result.predictions.shape) or {}
    made.evaluate()
    assert seen[0][-1] == 300


def test_predictions_are_logits(trainer):
    made = trainer()
    data = tiny.examples(4)
    assert made.predict(data).predictions.shape == (4, max(len(x["input_ids"]) for x in data), 300)
