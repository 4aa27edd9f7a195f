"""`sad plan --on-policy`: the memory of the play beside the training."""

from __future__ import annotations

import dataclasses
import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from sad.agents.kv_cache import CachedBatch
from sad.cli.main import main
from sad.errors import InputError
from sad.planner.formulas import Setup, phases, rollout_cache
from sad.planner.model_shape import shape_of
from sad.planner.plan import plan
from sad.planner.request import PlanRequest

CONFIGS = {
    "gpt2": GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=128, vocab_size=64, bos_token_id=0, eos_token_id=0),
    "llama with grouped queries": LlamaConfig(
        num_hidden_layers=3,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=128,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_cache_of_the_player_is_within_the_formula(name):
    """Counts the buffers of a play of 5 episodes and 100 tokens. They may be half as long again as the episodes."""
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.inference_mode():
        batch = CachedBatch(model, [[1] * 10] * 5)
        for _ in range(90):
            batch.feed([[2]] * 5)
    real = sum(buffer.nbytes for layer in batch._cache.layers for buffer in layer._buffers)
    planned = rollout_cache(shape_of("student", CONFIGS[name]), Setup(seq=100, dtype="fp32", rollout_batch=5))
    assert 2 / 3 * planned <= real <= 1.1 * planned


def test_the_papers_pair_plays_in_24_gb():
    request = PlanRequest(teacher="gpt2-xl", student="gpt2", gpu="24GB", on_policy=True)
    found = plan(request)
    assert found.mode == "linear" and found.modes.keys() == {"naive", "linear"} and not found.caches
    assert "--on-policy household --rollout-batch-size 64" in found.command
    off = plan(dataclasses.replace(request, on_policy=False)).modes["linear"]
    assert found.modes["linear"].setup.micro_batch == off.setup.micro_batch and found.modes["linear"].peak >= off.peak


def test_more_episodes_need_more_memory():
    student = shape_of("student", CONFIGS["gpt2"])
    sizes = []
    for rollout_batch in (0, 8, 64):
        found = {phase.name: phase.total for phase in phases(student, None, Setup(seq=100, rollout_batch=rollout_batch))}
        sizes.append(found.get("play", 0))
    assert sizes[0] == 0 < sizes[1] < sizes[2]
    crowded = plan(PlanRequest(teacher="gpt2-xl", student="gpt2", gpu="24GB", on_policy=True, rollout_batch=4096))
    assert crowded.mode is None and crowded.modes["linear"].peak_phase.name == "play"
    assert "Play fewer episodes at once (--rollout-batch)." in crowded.notes[-1]


def test_the_command_shows_it(monkeypatch, capsys):
    words = "plan --teacher gpt2-xl --student gpt2 --gpu 24GB --on-policy --rollout-batch 16"
    for flags in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["sad", *words.split(), *flags])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        shown = capsys.readouterr().out
        assert "--on-policy household" in shown and "Teacher cache on disk" not in shown
    assert json.loads(shown)["rollout_batch"] == 16 and json.loads(shown)["modes"].keys() == {"naive", "linear"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollout_batch": 0}, "rollout_batch: expected a whole number >= 1"),
        ({"gpus": 2}, "gpus: expected 1 with on_policy"),
    ],
)
def test_bad_requests(options, message):
    with pytest.raises(InputError, match=message):
        PlanRequest(teacher="gpt2-xl", student="gpt2", gpu="24GB", on_policy=True, **options)
