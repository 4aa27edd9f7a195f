"""The span loss inside TRL's trainers, against TRL's own loss and against `sad.SADTrainer`."""

from __future__ import annotations

import pytest
import torch

from sad import SADTrainer, SpanCollator
from sad.errors import InputError
from sad.training.loss_config import SpanLossConfig
from tests.sad.teacher_cache import tiny_cache
from tests.sad.training import tiny
from tests.sad.training.test_trainer import logged, weights

pytest.importorskip("trl", reason="trl is not installed")
import datasets
from tokenizers import decoders
from trl import DistillationConfig, DistillationTrainer, SFTConfig, SFTTrainer

from sad.integrations.trl import SpanDistillationTrainer, SpanSFTTrainer

DATA = tiny.examples(8)
OPTIONS = {
    "report_to": "none", "use_cpu": True, "bf16": False, "max_steps": 2, "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2, "logging_steps": 1, "learning_rate": 0.1, "save_strategy": "no", "optim": "sgd",
    "disable_tqdm": True, "seed": 1,
}  # fmt: skip


@pytest.fixture
def args(tmp_path):
    return lambda **fields: SFTConfig(**{"output_dir": str(tmp_path / "run"), "max_length": 96, **OPTIONS, **fields})


def span_sft(args, data=DATA, **options):
    return SpanSFTTrainer(tiny.model(seed=2), args, train_dataset=data, processing_class=tiny.tokenizer(), **options)


def teacher():
    return tiny.model(seed=1, sharpness=30)


@pytest.mark.parametrize("form", [list, datasets.Dataset.from_list], ids=["list", "Dataset"])
def test_all_tokens_without_a_teacher_are_the_loss_of_trl(args, form):
    """TRL counts the first token of a sequence in its divisor, which nothing predicts, unless its label is -100."""
    own = [{"input_ids": x["input_ids"], "labels": [-100, *x["input_ids"][1:]]} for x in DATA]
    spans = [{"input_ids": x["input_ids"], "span_ids": [1 + i % 2 for i in range(len(x["input_ids"]))]} for x in DATA]
    expected = SFTTrainer(
        tiny.model(seed=2), args(), train_dataset=datasets.Dataset.from_list(own), processing_class=tiny.tokenizer()
    )
    made = span_sft(args(), form(spans), span_loss=SpanLossConfig(ce_weight=1.0))
    for run in (expected, made):
        run.train()
    assert logged(made, "loss") == pytest.approx(logged(expected, "loss"), rel=1e-5)
    torch.testing.assert_close(weights(made), weights(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cache"])
def test_with_a_teacher_it_trains_as_the_sad_trainer(args, config, tmp_path, cached):
    source = {"teacher_model": teacher()}
    if cached:
        tiny_cache.write(tmp_path / "cache", DATA, top_k=300, dtype="float32")
        source = {"teacher_cache": tmp_path / "cache"}
    span_loss = SpanLossConfig(lambda_act=2.0, turn_balance="equal")
    options = {"lr_scheduler_type": "linear", "warmup_steps": 0, "seed": 1}
    made = span_sft(args(**options), span_loss=span_loss, eval_dataset=DATA, **source)
    fields = {name: OPTIONS[name] for name in ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")}
    fields |= {
        "learning_rate": 0.1,
        "optim": "sgd",
        "curriculum": False,
        "lambda_act": 2.0,
        "turn_balance": "equal",
        **options,
    }
    expected = SADTrainer(tiny.model(seed=2), args=config(**fields), train_dataset=DATA, eval_dataset=DATA, **source)
    for run in (expected, made):
        run.train()
    for name in ("loss", "loss_reason", "agreement_act", "tokens_act"):
        assert logged(made, name) == pytest.approx(logged(expected, name), rel=1e-5), name
    torch.testing.assert_close(weights(made), weights(expected), rtol=0, atol=1e-6)
    assert made.evaluate()["eval_loss"] == pytest.approx(expected.evaluate()["eval_loss"], rel=1e-6)


def test_models_by_name(args, tmp_path):
    for name, model in (("student", tiny.model(seed=2)), ("teacher", teacher())):
        model.save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    made = SpanSFTTrainer(
        str(tmp_path / "student"), args(), teacher_model=str(tmp_path / "teacher"), train_dataset=DATA, eval_dataset=DATA[:2]
    )
    made.train()
    assert logged(made, "loss_reason")


@pytest.fixture
def distillation(tmp_path):
    """Returns a function that builds an on-policy trainer whose student continues `Reasoning:`."""
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
    prompts = [{"prompt": f"You see a {thing}.\nReasoning:"} for thing in tiny.THINGS]

    def build(span_loss=None, **fields):
        fields = {"max_completion_length": 12, **OPTIONS, **fields}
        return SpanDistillationTrainer(
            tiny.model(seed=2),
            teacher(),
            DistillationConfig(output_dir=str(tmp_path / "run"), **fields),
            span_loss=span_loss,
            format="sad",
            train_dataset=datasets.Dataset.from_list(prompts),
            processing_class=tokenizer,
        )

    return build


def completions(tokenizer) -> dict[str, torch.Tensor]:
    """Two prompts, padded on the left, and completions, padded on the right, with a token of the environment."""
    prompts = [tokenizer(text)["input_ids"] for text in ("You see a mug.\nReasoning:", "Reasoning:")]
    written = [tokenizer(text)["input_ids"] for text in (" I look.\nAction: go to desk 1\n", " pen\nAction: go\n")]
    lengths = [max(map(len, rows)) for rows in (prompts, written)]
    left = lambda row, pad: [pad] * (lengths[0] - len(row)) + row  # noqa: E731
    right = lambda row, pad: row + [pad] * (lengths[1] - len(row))  # noqa: E731
    return {
        "prompt_ids": torch.tensor([left(row, 0) for row in prompts]),
        "prompt_mask": torch.tensor([left([1] * len(row), 0) for row in prompts]),
        "completion_ids": torch.tensor([right(row, 0) for row in written]),
        "completion_mask": torch.tensor([right([1] * len(row), 0) for row in written]),
        "tool_mask": torch.tensor([right([1] * (len(row) - 1) + [0], 0) for row in written]),
    }


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_all_tokens_of_a_student_are_the_loss_of_trl(distillation, beta):
    made = distillation(beta=beta, temperature=1.5)
    inputs = completions(made._tokenizer)
    inputs["span_ids"] = (1 + torch.arange(inputs["tool_mask"].shape[1]) % 2) * inputs["tool_mask"]
    for divisor in (None, torch.tensor(30.0)):
        results = []
        for compute in (SpanDistillationTrainer._compute_loss, DistillationTrainer._compute_loss):
            made.model.zero_grad()
            loss, entropy, tokens = compute(made, made.model, inputs, divisor)
            loss.backward()
            gradient = torch.cat([x.grad.flatten() for x in made.model.parameters() if x.grad is not None])
            results.append((loss.item(), entropy.item(), tokens.item(), gradient))
        ours, theirs = results
        assert ours[:3] == pytest.approx(theirs[:3], rel=1e-5)
        torch.testing.assert_close(ours[3], theirs[3], rtol=0, atol=1e-6)


def test_completions_are_labelled_by_their_text(distillation):
    made = distillation()
    inputs = completions(made._tokenizer)
    labels = made._labels(inputs)
    for row in range(2):
        of_kind = {
            kind: made._tokenizer.decode(inputs["completion_ids"][row][labels[row] == kind].tolist()) for kind in (1, 2)
        }
        assert (
            of_kind
            == [
                {1: " I look.\n", 2: "Action: go to desk 1"},
                {1: " pen\n", 2: "Action: go"},
            ][row]
        )  # the environment wrote the last token
    assert labels[inputs["completion_mask"] == 0].tolist() == [0] * int((inputs["completion_mask"] == 0).sum())


def test_a_student_trains_on_its_own_text(distillation):
    made = distillation(span_loss=SpanLossConfig(lambda_reason=2.0))
    before = weights(made)
    made.train()
    assert len(logged(made, "loss_reason")) == 2 and all(tokens > 0 for tokens in logged(made, "tokens_reason"))
    assert not torch.equal(weights(made), before)


def test_options_of_another_trainer_are_refused(distillation):
    for name, value in (("temperature", 2.0), ("turn_balance", "equal"), ("divergence", "jsd")):
        with pytest.raises(InputError) as caught:
            distillation(span_loss=SpanLossConfig(**{name: value}))
        assert caught.value.where == f"span_loss.{name}"


def test_refused(args, config):
    for make, where in (
        (lambda: SpanSFTTrainer(tiny.model(), config(), teacher_model=teacher()), "args"),
        (lambda: span_sft(args()), "teacher_model"),
        (lambda: span_sft(args(packing=True), teacher_model=teacher()), "packing"),
        (lambda: span_sft(args(), teacher_model=teacher(), data_collator=list), "data_collator"),
        (lambda: span_sft(args(), teacher_model=teacher(), span_loss=SpanLossConfig(nan_policy="skip")), "nan_policy"),
        (lambda: span_sft(args(), teacher_model=teacher(), data_collator=SpanCollator(observe=True)), "data_collator"),
    ):
        with pytest.raises(InputError) as caught:
            make()
        assert caught.value.where == where
