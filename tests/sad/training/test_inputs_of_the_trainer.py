"""What users pass to `SADTrainer`: names of models, raw data, left padding, streams, a configuration of peft."""

from __future__ import annotations

import logging

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from sad import SADTrainer, SpanCollator
from sad.errors import InputError
from tests.sad.training import tiny
from tests.sad.training.test_trainer import logged, weights

DATA = tiny.examples(8)
SHORT = {"max_steps": 2, "curriculum": False, "optim": "sgd", "learning_rate": 0.1}


def teacher():
    return tiny.model(seed=1, sharpness=30)


def test_models_by_name(config, tmp_path):
    """The same training as with loaded models; the tokenizer comes with the student."""
    for name, model in (("student", tiny.model(seed=2)), ("teacher", teacher())):
        model.save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    made = SADTrainer(str(tmp_path / "student"), tmp_path / "teacher", config(**SHORT), train_dataset=DATA)
    expected = SADTrainer(tiny.model(seed=2), teacher(), config(**SHORT), train_dataset=DATA)
    for run in (made, expected):
        run.train()
    assert logged(made, "loss") == logged(expected, "loss")
    assert made.processing_class.eos_token == "<eos>"
    with pytest.raises(InputError, match="teacher_model: expected a folder with a model"):
        SADTrainer(tiny.model(), str(tmp_path / "no teacher"), config(), train_dataset=DATA)


def test_a_configuration_of_peft(config):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=True)
    made = SADTrainer(tiny.model(seed=2), teacher(), config(**SHORT), train_dataset=DATA, peft_config=lora)
    made.train()
    assert made.model.get_nb_trainable_parameters()[0] < made.model.get_nb_trainable_parameters()[1] / 2
    with pytest.raises(InputError, match="peft_config"):
        SADTrainer(made.model, teacher(), config(), train_dataset=DATA, peft_config=lora)


@pytest.mark.parametrize("loss_from", ["hidden", "logits"])
def test_padding_on_the_left_adds_no_row(config, loss_from):
    """A collator of one's own that pads on the left trains as `SpanCollator`: padding predicts nothing."""

    def left(examples):
        length = max(len(x["input_ids"]) for x in examples)
        rows = [(length - len(x["input_ids"]), x) for x in examples]
        return {
            "input_ids": torch.tensor([[0] * pad + x["input_ids"] for pad, x in rows]),
            "attention_mask": torch.tensor([[0] * pad + [1] * len(x["input_ids"]) for pad, x in rows]),
            "position_ids": torch.tensor([[0] * pad + list(range(len(x["input_ids"]))) for pad, x in rows]),
            "span_ids": torch.tensor([[0] * pad + x["span_ids"] for pad, x in rows]),
        }

    assert any(x["span_ids"][0] for x in DATA)  # the first token is supervised
    fields = {**SHORT, "loss_from": loss_from}
    runs = [
        SADTrainer(tiny.model(seed=2), teacher(), config(**fields), DATA, DATA, data_collator=collator)
        for collator in (SpanCollator(), left)
    ]
    for run in runs:
        run.train()
    assert logged(runs[1], "tokens_reason") == logged(runs[0], "tokens_reason")
    assert logged(runs[1], "loss") == pytest.approx(logged(runs[0], "loss"), rel=1e-5)
    torch.testing.assert_close(weights(runs[1]), weights(runs[0]), rtol=0, atol=1e-5)
    assert runs[1].evaluate()["eval_loss"] == pytest.approx(runs[0].evaluate()["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("curriculum", [False, True])
def test_raw_data_are_refused(config, curriculum):
    raw = Dataset.from_list([{"text": "Reasoning: a\nAction: b\n"}] * 4)
    made = SADTrainer(tiny.model(), teacher(), config(curriculum=curriculum), train_dataset=raw)
    with pytest.raises(InputError) as caught:
        made.train()
    assert str(caught.value).startswith(
        "example 0: expected input_ids and span_ids, got text. Encode the trajectories first"
    )


def test_a_stream_says_that_it_has_no_curriculum(config, caplog):
    stream = Dataset.from_list(DATA).to_iterable_dataset()
    logging.getLogger("sad").propagate = True
    with caplog.at_level(logging.WARNING):
        made = SADTrainer(tiny.model(seed=2), teacher(), config(max_steps=2), train_dataset=stream)
    assert sum("The curriculum is off" in message for message in caplog.messages) == 1
    made.train()
    assert len(logged(made, "loss")) == 2
