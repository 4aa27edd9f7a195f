"""Pushes to a Hub on this machine: what arrives, what never leaves the machine, and what a failure leaves behind."""

from __future__ import annotations

import huggingface_hub
import pytest
from safetensors.torch import load as load_safetensors
from transformers import AutoModelForCausalLM

from sad.errors import InputError
from sad.training.cli_args import TrainOptions
from sad.training.config import SADConfig
from sad.training.run import distill
from sad.training.trainer import SADTrainer
from sad.trajectories.trajectory import write_jsonl
from tests.sad.training import tiny
from tests.sad.training.fake_hub import running_hub

PUSH = {"push_to_hub": True, "hub_model_id": "student-1", "hub_token": "hf_secret"}
MODEL = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def hub(monkeypatch):
    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield hub


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Returns a function from an output folder to the options of a run."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, seed in (("teacher", 1), ("student", 2)):
        tiny.model(seed=seed).save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    write_jsonl(folder / "data.jsonl", tiny.trajectories(8))
    paths = {"teacher": str(folder / "teacher"), "student": str(folder / "student"), "data": [str(folder / "data.jsonl")]}
    return lambda out: TrainOptions(**paths, out=str(out))


def test_a_run_pushes_its_model_and_nothing_else(hub, options, tmp_path):
    """With a push per checkpoint. The token stands in no file."""
    steps = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "hub_always_push": True}
    said: list[str] = []
    out = tmp_path / "run"
    distill(options(out), tiny.CONFIG | steps | PUSH, said.append)
    assert hub.created == ["student-1"] and hub.tokens == {"hf_secret"} and said[-1] == "pushed it to own/student-1"
    messages = [message for message, _ in hub.commits]
    assert sorted(messages) == ["Model save", "Training in progress, step 1", "Training in progress, step 2"]
    assert set(hub.files) >= MODEL
    assert not [name for name in hub.files if "/" in name or name not in MODEL | {"generation_config.json"}]
    card = hub.files["README.md"].decode()
    assert "| teacher | teacher |" in card and "sad train --teacher teacher" in card and "loss_reason" in card
    kept = [path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "training_args.bin"]
    assert not [content for content in kept if b"hf_secret" in content]
    secrets = (b"hf_secret", str(tmp_path).encode())
    assert not [name for name, content in hub.files.items() if any(secret in content for secret in secrets)]
    trained = AutoModelForCausalLM.from_pretrained(out / "model").state_dict()
    pushed = load_safetensors(dict(hub.commits)["Model save"]["model.safetensors"])
    assert pushed.keys() <= trained.keys() and all(trained[name].equal(x) for name, x in pushed.items())
    assert {path.name for path in out.iterdir()} == {
        "checkpoint-1", "checkpoint-2", "config.yaml", "curriculum.json", "metrics.jsonl", "model", "run.json",
    }  # fmt: skip


@pytest.mark.parametrize("part", ["/repos/create", "/preupload/"])
@pytest.mark.parametrize("status", [401, 403])
def test_no_right_to_write_is_one_message_before_the_training(hub, options, tmp_path, part, status):
    """A repository that exists is accepted without the right to write, so the right is checked."""
    hub.deny[part] = status
    with pytest.raises(InputError, match=r"^push_to_hub: expected a repository to write to, got 'student-1'.*hf auth login"):
        distill(options(tmp_path / "run"), tiny.CONFIG | PUSH, lambda message: None)
    assert not (tmp_path / "run").exists() and not hub.commits


def test_no_network_is_one_message_before_the_training(hub, monkeypatch, options, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"^push_to_hub: expected .* got 'student-1' \(.*Check the network"):
        distill(options(tmp_path / "run"), tiny.CONFIG | PUSH, lambda message: None)
    assert not (tmp_path / "run").exists()


def test_a_push_that_fails_at_the_end_loses_nothing(hub, options, tmp_path, caplog):
    hub.deny["/commit/"] = 403
    out = tmp_path / "run"
    steps = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(InputError, match="push_to_hub: expected the Hub to take the model") as caught:
        distill(options(out), tiny.CONFIG | steps | PUSH, lambda message: None)
    assert f"hf upload own/student-1 {out / 'model'}" in str(caught.value)
    assert AutoModelForCausalLM.from_pretrained(out / "model").config.n_embd == 32
    assert (out / "checkpoint-1" / "optimizer.pt").is_file() and not (out / ".hub").exists()
    assert "A checkpoint was not pushed to the Hub" in caplog.text


def test_push_to_hub_in_python(hub, tmp_path):
    """A whole checkpoint goes to a folder of its own with `hub_strategy`, and the call at the end saves and uploads."""
    steps = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "hub_strategy": "checkpoint"}
    config = SADConfig(output_dir=str(tmp_path / "run"), **tiny.CONFIG | steps | PUSH)
    models = tiny.model(seed=2), tiny.model(seed=1)
    trainer = SADTrainer(*models, config, tiny.examples(8), processing_class=tiny.tokenizer())
    trainer.train()
    assert set(hub.files) >= MODEL | {"last-checkpoint/optimizer.pt", "last-checkpoint/model.safetensors"}
    assert not [name for name in hub.files if "training_args" in name]
    hub.commits.clear()
    trainer.push_to_hub()
    assert [message for message, _ in hub.commits] == ["End of training"] and set(hub.files) >= MODEL
    assert not (tmp_path / "run" / ".hub").exists()
    with pytest.raises(InputError, match="blocking: expected the default, got False"):
        trainer.push_to_hub(blocking=False)
