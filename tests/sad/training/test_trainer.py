"""The trainer: its loss and its log, which accumulation, batch size and interruption must not change."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sad.errors import InputError
from sad.training.trainer import SADTrainer
from tests.sad.training import tiny


def kl_sums(student, teacher, examples, temperature: float = 1.0, columns: int = 300) -> dict[int, tuple[float, int]]:
    """Returns KL sum and token count of each kind, from log_softmax in float64, one example at a time, without padding."""
    sums = dict.fromkeys((1, 2), (0.0, 0))
    for example in examples:
        ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["span_ids"][1:])
        with torch.no_grad():
            p, q = (
                F.log_softmax(model.eval()(ids).logits[0, :-1, :columns].double() / temperature, -1)
                for model in (teacher, student)
            )
        kl = (p.exp() * (p - q)).sum(-1)
        for kind in sums:
            mine = labels == kind
            sums[kind] = (sums[kind][0] + kl[mine].sum().item(), sums[kind][1] + int(mine.sum()))
    return sums


def weights(trainer: SADTrainer) -> torch.Tensor:
    return torch.cat([x.detach().flatten() for x in trainer.model.parameters()])


def logged(trainer: SADTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_first_step_is_the_paper_s_loss_and_its_parts(trainer):
    """Compares loss, losses of both kinds, agreement and entropies of a step over all data with log_softmax."""
    student, teacher, data = tiny.model(seed=2), tiny.model(seed=1, sharpness=30), tiny.examples(8)
    sums = kl_sums(student, teacher, data, temperature=2.0)
    fields = {"lambda_reason": 0.5, "lambda_act": 2.0, "temperature": 2.0, "max_steps": 1}
    made = trainer(student, teacher, data, per_device_train_batch_size=8, **fields)
    made.train()
    (reason, n_reason), (act, n_act) = sums[1], sums[2]
    log = made.state.log_history[0]
    assert log["loss"] == pytest.approx((0.5 * reason + 2.0 * act) / (n_reason + n_act), rel=1e-5)
    assert log["loss_reason"] == pytest.approx(reason / n_reason, rel=1e-5)
    assert log["loss_act"] == pytest.approx(act / n_act, rel=1e-5)
    assert (log["tokens_reason"], log["tokens_act"]) == (n_reason, n_act)
    assert 0 <= log["agreement_act"] <= 1
    assert 0 < log["teacher_entropy_act"] < log["student_entropy_act"] <= math.log(300) + 1e-6


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_families_learn(trainer, family):
    made = trainer(tiny.model(family, seed=2), tiny.model(family, seed=1, sharpness=30), max_steps=25)
    made.train()
    losses = logged(made, "loss")
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(not parameter.requires_grad or parameter.grad is None for parameter in made.teacher_model.parameters())


@pytest.mark.parametrize("columns", [(320, 300), (300, 320)], ids=["student padded", "teacher padded"])
def test_padded_heads(trainer, columns):
    """The loss uses the columns that both heads have. The student's padding rows are not trained."""
    student, teacher = tiny.model(vocabulary=columns[0], seed=2), tiny.model(vocabulary=columns[1], seed=1, sharpness=30)
    data = tiny.examples(4)
    (reason, n_reason), (act, n_act) = kl_sums(student, teacher, data).values()
    padding = student.lm_head.weight[300:].detach().clone()
    made = trainer(student, teacher, data, max_steps=10, curriculum=False)
    made.train()
    assert logged(made, "loss")[0] == pytest.approx((reason + act) / (n_reason + n_act), rel=1e-5)
    assert logged(made, "loss")[-1] < 0.9 * logged(made, "loss")[0]
    assert torch.equal(student.lm_head.weight[300:], padding)


def test_accumulation_changes_nothing(trainer):
    """1x4 equals 4x1, although the trajectories have different numbers of supervised tokens. SGD keeps tiny differences
    of the gradients tiny."""
    runs = {}
    for size, steps in ((4, 1), (2, 2), (1, 4)):
        fields = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        runs[size] = trainer(**fields, optim="sgd", learning_rate=0.5, max_steps=5)
        runs[size].train()
    for size in (1, 2):
        assert logged(runs[size], "loss") == pytest.approx(logged(runs[4], "loss"), rel=1e-6)
        assert logged(runs[size], "loss_act") == pytest.approx(logged(runs[4], "loss_act"), rel=1e-6)
        torch.testing.assert_close(weights(runs[size]), weights(runs[4]), rtol=0, atol=1e-7)
    assert (weights(runs[4]) - weights(trainer())).abs().max() > 1e-3  # the weights changed


def test_writing_the_gradient_in_place_changes_nothing(trainer):
    runs = [trainer(inplace_backward=inplace) for inplace in (True, False)]
    for run in runs:
        run.train()
    assert torch.equal(weights(runs[0]), weights(runs[1]))


@pytest.mark.parametrize("stop", [4, 6], ids=["inside an epoch", "between epochs"])
def test_resume_gives_the_weights_of_an_uninterrupted_run(trainer, tmp_path, stop):
    """The weights have the same bits with dropout, a growing curriculum, accumulation and a scheduler."""
    fields = {"max_steps": 10, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    fields |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "curriculum_end": 1.0}
    whole = trainer(tiny.model(seed=2, dropout=0.1), output_dir=str(tmp_path / "whole"), **fields)
    whole.train()
    first = trainer(tiny.model(seed=2, dropout=0.1), output_dir=str(tmp_path / "cut"), **fields)
    first.add_callback(_StopAt(stop))
    first.train()
    assert first.state.global_step == stop
    second = trainer(tiny.model(seed=7, dropout=0.1), output_dir=str(tmp_path / "cut"), **fields)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 10
    assert torch.equal(weights(second), weights(whole))
    assert logged(second, "loss_reason") == logged(whole, "loss_reason")


def _StopAt(step: int):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= step

    return Stop()


def test_evaluation_is_the_mean_over_tokens_whatever_the_batches(trainer):
    student, teacher, data = tiny.model(seed=2), tiny.model(seed=1, sharpness=30), tiny.examples(7)
    (reason, n_reason), (act, n_act) = kl_sums(student, teacher, data).values()
    for size in (1, 3):
        metrics = trainer(student, teacher, eval={"new": data}, per_device_eval_batch_size=size).evaluate()
        assert metrics["eval_new_loss"] == pytest.approx((reason + act) / (n_reason + n_act), rel=1e-5)
        assert metrics["eval_new_loss_act"] == pytest.approx(act / n_act, rel=1e-5)
        assert metrics["eval_new_tokens_reason"] == n_reason


def test_evaluating_between_steps_does_not_disturb_training(trainer):
    fields = {"eval_strategy": "steps", "eval_steps": 2}
    runs = [trainer(), trainer(eval=tiny.examples(3), **fields)]
    for run in runs:
        run.train()
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert logged(runs[0], "tokens_act") == logged(runs[1], "tokens_act")
    assert len(logged(runs[1], "eval_loss_act")) == 2


def test_no_supervised_token_in_a_step(trainer):
    data = [{"input_ids": example["input_ids"], "span_ids": [0] * len(example["input_ids"])} for example in tiny.examples(4)]
    made = trainer(train=data, max_steps=1)
    before = weights(made).clone()
    made.train()
    assert logged(made, "loss") == [0.0] and not logged(made, "loss_act")
    torch.testing.assert_close(weights(made), before, rtol=0, atol=0)


def test_curriculum_orders_the_training(trainer):
    """The first steps train on easy trajectories. The log reports the admitted share."""
    made, seen = trainer(max_steps=12, curriculum_start=0.2, curriculum_end=1.0, curriculum_window=2), []
    inner = made.compute_loss

    def spy(model, inputs, **options):
        seen.append((inputs["span_ids"] > 0).sum().item())
        return inner(model, inputs, **options)

    made.compute_loss = spy
    made.train()
    assert sum(seen[:4]) < 0.7 * sum(seen[-4:])
    shares = logged(made, "curriculum_share")
    assert shares == sorted(shares) and shares[-1] == 1.0 and shares[0] < 0.3


def test_bfloat16_autocast(trainer):
    made = trainer(bf16=True, max_steps=20)
    made.train()
    assert logged(made, "loss")[-1] < 0.9 * logged(made, "loss")[0]
    assert made.model.lm_head.weight.dtype == torch.float32


def test_adapters_alone_are_trained_and_saved(trainer, tmp_path):
    peft = pytest.importorskip("peft")
    student, data = tiny.model("llama", seed=2), tiny.examples()
    before = {name: x.clone() for name, x in student.state_dict().items()}
    lora = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(student, lora)
    made = trainer(adapted, train=data, eval=data, max_steps=20, learning_rate=5e-2)
    untrained = made.evaluate()["eval_loss"]
    made.train()
    assert made.evaluate()["eval_loss"] < untrained - 0.02
    made.save_model(str(tmp_path / "adapter"))
    base = {name.replace(".base_layer", ""): x for name, x in adapted.get_base_model().state_dict().items()}
    assert all(torch.equal(base[name], x) for name, x in before.items())
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_the_teacher_stays_in_eval_mode_and_without_gradient(trainer):
    teacher = tiny.model(seed=1, dropout=0.5).train()
    made = trainer(teacher=teacher, max_steps=2)
    made.train()
    batch = made.data_collator(made.train_dataset[:2])
    del batch["span_ids"], batch["loss_rows"]
    logits = made.teacher_logits(batch)
    assert not teacher.training and not logits.requires_grad
    assert torch.equal(logits, made.teacher_logits(batch))
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_trainer_refuses(trainer, config, tmp_path):
    from transformers import TrainingArguments

    student = tiny.model()
    with pytest.raises(InputError, match="teacher"):
        trainer(student, student)
    with pytest.raises(InputError, match="SADConfig"):
        SADTrainer(student, tiny.model(), TrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(InputError, match="backend") as caught:
        trainer(backend="cuda")
    assert "auto" in str(caught.value)
