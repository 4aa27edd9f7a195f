"""The paper's defaults, and refused values."""

from __future__ import annotations

import pytest
import torch

from sad.errors import InputError


def test_paper_defaults(config, tmp_path):
    from sad.training.config import SADConfig

    made = SADConfig(output_dir=str(tmp_path), use_cpu=True)
    assert (made.learning_rate, made.max_grad_norm, made.max_length) == (2e-5, 1.0, 512)
    assert made.per_device_train_batch_size * made.gradient_accumulation_steps == 64
    assert made.lr_scheduler_type == "cosine" and made.warmup_steps > 0 and "adamw" in made.optim
    assert (made.lambda_reason, made.lambda_act, made.lambda_observe, made.temperature) == (1.0, 1.0, 0.0, 1.0)
    assert made.label_names == ["span_ids"]


@pytest.mark.parametrize(
    "fields",
    [
        {"lambda_reason": -1.0},
        {"lambda_act": float("nan")},
        {"lambda_observe": -0.5},
        {"lambda_act": 0.0, "lambda_reason": 0.0},
        {"temperature": 0.0},
        {"temperature": "hot"},
        {"max_length": 1},
        {"pad_to_multiple_of": 1.5},
        {"curriculum_start": 1.1},
        {"curriculum_end": 0.0},
        {"curriculum_units": "metres"},
        {"curriculum_gamma": 0.0, "curriculum_beta": 0.0, "curriculum_alpha": 0.0},
        {"backend": "fpga"},
        {"label_smoothing_factor": 0.1},
        {"train_sampling_strategy": "sequential"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_refused(config, fields):
    name = next(iter(fields))
    with pytest.raises(InputError) as caught:
        config(**fields)
    assert caught.value.where == name


def test_a_machine_without_a_gpu(config, monkeypatch):
    """transformers says `assign use_cpu`, and PyTorch warns of pinned memory in every run."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: False)
    with pytest.raises(InputError, match=r"bf16: expected a GPU, or use_cpu beside it, .* Add use_cpu \(--use-cpu\)"):
        config(use_cpu=False, bf16=True)
    assert config(use_cpu=True, bf16=True).bf16 and not config(use_cpu=False).dataloader_pin_memory
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: True)
    assert config(use_cpu=False).dataloader_pin_memory


def test_observations_alone_may_have_a_loss(config):
    assert config(lambda_act=0.0, lambda_reason=0.0, lambda_observe=0.5).observe and not config().observe


def test_sampling_strategies_of_transformers_work_without_a_curriculum(config):
    assert config(train_sampling_strategy="sequential", curriculum=False).train_sampling_strategy == "sequential"
