"""The backbone and the head of a model compute its logits."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sad.model_parts import ModelParts, forward_as, split_model
from tests.sad.training import tiny

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
    """Returns two sequences, the second padded on the right."""
    ids = torch.randint(0, 300, (2, 7))
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_compute_the_model_s_logits(family):
    whole, given = model(family).eval(), batch()
    parts = split_model(whole)
    torch.testing.assert_close(parts.head().logits(parts.hidden(given)), whole(**given).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"], "saved"], ids=str)
def test_adapters(targets):
    """Covers LoRA below the head, LoRA on the head, and a fully trained head."""
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


def test_a_model_with_other_logits_is_refused():
    whole = model("llama")
    inner = whole.forward
    whole.forward = lambda **given: type(out := inner(**given))(logits=out.logits + 1.0)
    with pytest.raises(ValueError, match="not what its head and its configuration describe"):
        split_model(whole)
    with pytest.raises(ValueError, match="no separate backbone"):
        ModelParts(torch.nn.Linear(3, 3))


def test_forward_is_restored():
    layer = torch.nn.Linear(3, 3)
    with forward_as(layer, lambda: "elsewhere"):
        assert layer() == "elsewhere"
    assert layer(torch.zeros(1, 3)).shape == (1, 3) and "forward" not in vars(layer)
    own = vars(layer)["forward"] = lambda: "its own"
    with pytest.raises(RuntimeError), forward_as(layer, lambda: "elsewhere"):
        raise RuntimeError
    assert layer.forward is own
