"""Models in two parts, and the loss from hidden states against the loss from logits."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sad.errors import InputError
from sad.model_parts import ModelParts, forward_as, split_model
from tests.sad.training import tiny
from tests.sad.training.test_trainer import logged, weights

SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
OTHERS = {
    "qwen2": {"num_key_value_heads": 2},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16, "final_logit_softcapping": 0.5},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 4.0},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.25, "pad_token_id": 0},
}
FAMILIES = ["gpt2", "opt", "llama", *OTHERS]


def model(family: str):
    if family not in OTHERS:
        return tiny.model(family, sharpness=5)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES, **OTHERS[family]))


def batch() -> dict[str, torch.Tensor]:
    """Two sequences, the second padded on the right."""
    ids = torch.randint(0, 300, (2, 7))
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_make_the_whole(family):
    whole, given = model(family).eval(), batch()
    parts = split_model(whole)
    torch.testing.assert_close(parts.head().logits(parts.hidden(given)), whole(**given).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"], "saved"], ids=str)
def test_adapters(targets):
    """LoRA below the head, on it, and a head that is trained as a whole."""
    peft = pytest.importorskip("peft")
    saved = {"modules_to_save": ["lm_head"]} if targets == "saved" else {}
    lora = peft.LoraConfig(r=4, target_modules=["q_proj"] if saved else targets, task_type="CAUSAL_LM", **saved)
    whole, given = peft.get_peft_model(model("llama"), lora), batch()
    for parameter in whole.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    parts = split_model(whole)
    logits, expected = parts.head().logits(parts.hidden(given)), whole(**given).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    trained = [parameter for parameter in whole.parameters() if parameter.requires_grad]
    got, exact = (torch.autograd.grad(x.square().sum(), trained, allow_unused=True) for x in (logits, expected))
    torch.testing.assert_close(got, exact, rtol=1e-3, atol=1e-4)


def test_a_model_that_does_more_is_refused():
    whole = model("llama")
    inner = whole.forward
    whole.forward = lambda **given: type(out := inner(**given))(logits=out.logits + 1.0)
    with pytest.raises(ValueError, match="more to its logits"):
        split_model(whole)
    with pytest.raises(ValueError, match="no separate body"):
        ModelParts(torch.nn.Linear(3, 3))


def test_redirection_ends():
    layer = torch.nn.Linear(3, 3)
    with forward_as(layer, lambda: "elsewhere"):
        assert layer() == "elsewhere"
    assert layer(torch.zeros(1, 3)).shape == (1, 3) and "forward" not in vars(layer)
    own = vars(layer)["forward"] = lambda: "its own"
    with pytest.raises(RuntimeError), forward_as(layer, lambda: "elsewhere"):
        raise RuntimeError
    assert layer.forward is own


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


def test_no_logits_are_made(trainer, monkeypatch):
    made = trainer(curriculum_gamma=0.0)  # whose entropies come from logits
    for name in ("model", "teacher"):
        head = getattr(made, name).lm_head
        monkeypatch.setattr(head, "forward", lambda *_: pytest.fail("the head was called"))
    made.train()


def test_rows_need_not_be_looked_for(trainer, monkeypatch):
    """The collator says which rows carry loss; `nonzero` is what waits for a GPU."""
    made = trainer()
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda *_: pytest.fail("the rows were looked for"))
    made.train()


def test_what_does_not_come_apart(trainer, caplog):
    teacher = tiny.model(seed=1)
    teacher.lm_head = torch.nn.Sequential(teacher.lm_head)
    with pytest.raises(InputError, match="a teacher that is not: its head is a Sequential"):
        trainer(teacher=teacher, loss_from="hidden")
    with caplog.at_level(logging.WARNING):
        logging.getLogger("sad").propagate = True
        made = trainer(teacher=teacher)
    assert made._parts is None
    made.train()


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
