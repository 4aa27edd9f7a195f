"""Memory options: adapters, quantized teachers, checkpointing, 16 bits; from Python and from `sad train`."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sad import models
from sad.cli.main import main
from sad.errors import InputError
from sad.models import add_adapters
from sad.training.cli_args import RunOptions
from sad.trajectories.trajectory import write_jsonl
from tests.sad.training import tiny
from tests.sad.training.test_trainer import logged, weights

FLAGS = [
    "--use-cpu", "--disable-tqdm", "true", "--max-length", "96", "--per-device-train-batch-size", "4", "--logging-steps",
    "1", "--gradient-accumulation-steps", "1", "--max-steps", "4", "--save-steps", "2", "--learning-rate", "1e-2",
]  # fmt: skip


def wide(seed: int = 1) -> LlamaForCausalLM:
    """Returns a Llama whose layers have 64 inputs, the block size of NF4, and a head with peaked outputs."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=300, max_position_embeddings=128, tie_word_embeddings=False, **sizes))
    with torch.no_grad():
        made.lm_head.weight.mul_(30)
    return made


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Runs `sad train` on a Llama student of width 32 and a teacher of width 64. Returns exit code, stdout and stderr."""
    wide().save_pretrained(tmp_path / "teacher")
    tiny.model("llama", seed=2).save_pretrained(tmp_path / "student")
    tiny.tokenizer().save_pretrained(tmp_path / "student")
    write_jsonl(tmp_path / "data.jsonl", tiny.trajectories(12))

    def run(out: str, *flags: str, resume: bool = False) -> tuple[int, str, str]:
        inputs = [f"--{name}={tmp_path / name}" for name in ("teacher", "student")] + [f"--data={tmp_path / 'data.jsonl'}"]
        given = ["--resume"] if resume else [*inputs, *FLAGS]
        monkeypatch.setattr(sys, "argv", ["sad", "train", f"--out={tmp_path / out}", *given, *flags])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run


def test_adapters_from_the_command_line(train, tmp_path, monkeypatch):
    """A run saves adapters, an interrupted run resumes to the same bits, and the adapter folder loads like a model."""
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    flags = ["--lora-rank", "4", "--lora-targets", "q_proj, down_proj", "--student=student"]  # a relative path
    code, out, err = train("whole", *flags)
    assert code == 0, err
    size = 2 * 4 * ((32 + 32) + (64 + 32))  # two layers, rank 4, q_proj and down_proj
    assert f"adapters: {size:,} trainable parameters" in out and "saved the adapters" in out
    shutil.copytree("whole", "cut")
    shutil.rmtree("cut/model")
    shutil.rmtree("cut/checkpoint-4")
    code, out, err = train("cut", resume=True)
    assert code == 0 and "checkpoint-2" in out, err
    saved = [(tmp_path / name / "model/adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert saved[0] == saved[1]
    settings = json.loads((tmp_path / "whole/model/adapter_config.json").read_text())
    assert settings["lora_alpha"] == 8 and sorted(settings["target_modules"]) == ["down_proj", "q_proj"]

    monkeypatch.chdir("/")
    with torch.no_grad():
        trained = models.load_model("model", tmp_path / "whole/model")(torch.arange(9)[None]).logits
        before = AutoModelForCausalLM.from_pretrained(tmp_path / "student")(torch.arange(9)[None]).logits
    assert 1e-4 < (trained - before).abs().max() < 1
    shutil.rmtree(tmp_path / "student")
    with pytest.raises(InputError, match="base_model_name_or_path"):
        models.load_model("model", tmp_path / "whole/model")


def test_adapters_on_a_head_tied_to_the_embedding(trainer):
    """The effective head is the embedding plus an adapter. Hidden states and logits give the same loss."""
    peft = pytest.importorskip("peft")
    runs = {}
    for loss_from in ("hidden", "logits"):
        student = tiny.model("llama", seed=2)
        student.config.tie_word_embeddings = True
        student.tie_weights()
        assert student.lm_head.weight is student.model.embed_tokens.weight
        torch.manual_seed(0)
        adapted = peft.get_peft_model(student, peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"]))
        runs[loss_from] = trainer(adapted, loss_from=loss_from, optim="sgd", learning_rate=0.5)
        runs[loss_from].train()
    assert logged(runs["hidden"], "loss") == pytest.approx(logged(runs["logits"], "loss"), rel=1e-5)
    torch.testing.assert_close(weights(runs["hidden"]), weights(runs["logits"]), rtol=0, atol=1e-6)
    learnt = {name: x for name, x in runs["hidden"].model.named_parameters() if "lora_B" in name}  # initially zero
    assert len(learnt) == 3 and all(x.abs().max() > 0 for x in learnt.values())


def test_gpt2_adapters_change_nothing_before_training(tmp_path):
    """The layers of GPT-2 store transposed weights."""
    pytest.importorskip("peft")
    student, ids = tiny.model("gpt2").eval(), torch.arange(9)[None]
    before = student(ids).logits
    adapted = add_adapters(student, tmp_path, 4, None, None, seed=0)
    torch.testing.assert_close(adapted(ids).logits, before)
    names = {name.split(".")[-4] for name, x in adapted.named_parameters() if x.requires_grad}
    assert names == {"c_attn", "c_proj", "c_fc"}
    with pytest.raises(InputError, match=r"Its linear layers are c_attn, c_fc, c_proj, lm_head\."):
        add_adapters(tiny.model("gpt2"), tmp_path, 4, None, "q_proj", seed=0)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantized_teacher(train, tmp_path, bits):
    """A quantized teacher is smaller and close to the original, and the loss of a run differs by the quantization error."""
    pytest.importorskip("bitsandbytes")
    whole, ids = wide(), torch.arange(60).view(2, 30)
    whole.save_pretrained(tmp_path / "wide")
    quantized = models.load_model("teacher", tmp_path / "wide", quantization=bits, device="cpu")
    layers = sum(x.numel() for name, x in whole.named_parameters() if name.endswith("proj.weight"))
    saved = whole.get_memory_footprint() - quantized.get_memory_footprint()
    assert saved == pytest.approx({"8bit": 3.0, "4bit": 3.5}[bits] * layers, rel=0.05)
    with torch.no_grad():
        exact, got = whole(ids).logits, quantized(ids).logits
    assert 0 < (got - exact).norm() < {"8bit": 0.02, "4bit": 0.25}[bits] * exact.norm()
    losses = {}
    for name, flags in (("whole", []), (bits, ["--teacher-quantization", bits, "--loss-from", "hidden"])):
        code, _, err = train(name, *flags)
        assert code == 0, err
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [log["loss"] for log in map(json.loads, lines) if "loss" in log]
    assert losses[bits] != losses["whole"] and losses[bits] == pytest.approx(losses["whole"], rel=0.05)


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "adapters"])
def test_checkpointing_and_16_bits(trainer, adapters):
    """Checkpointing recomputes the same loss. bfloat16 is close."""
    runs, calls = {}, {}
    for name, fields in {
        "plain": {},
        "checkpointing": {"gradient_checkpointing": True},
        "both": {"gradient_checkpointing": True, "bf16": True},
    }.items():
        student = tiny.model("llama", seed=2)
        if adapters:
            pytest.importorskip("peft")
            student = add_adapters(student, ".", 4, None, None, seed=0)
        calls[name] = []
        layer = next(module for path, module in student.named_modules() if path.endswith("layers.1.self_attn"))
        layer.register_forward_hook(lambda *_, seen=calls[name]: seen.append(torch.is_grad_enabled()))
        runs[name] = trainer(student, loss_from="hidden", optim="sgd", learning_rate=0.5, curriculum=False, **fields)
        runs[name].train()
    assert len(calls["checkpointing"]) == len(calls["both"]) == len(calls["plain"]) + 4  # one more call per step
    losses = {name: logged(run, "loss") for name, run in runs.items()}
    assert losses["plain"][-1] < losses["plain"][0]
    assert losses["checkpointing"] == pytest.approx(losses["plain"], rel=1e-6)
    torch.testing.assert_close(weights(runs["checkpointing"]), weights(runs["plain"]), rtol=0, atol=1e-6)
    assert losses["both"] == pytest.approx(losses["plain"], rel=1e-2) and losses["both"] != losses["plain"]
    assert weights(runs["both"]).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_quantization": "int8"}, "teacher_quantization: expected one of 8bit, 4bit"),
        ({"lora_rank": 0}, "lora_rank"),
        ({"lora_rank": True}, "lora_rank"),
        ({"lora_rank": 4, "lora_alpha": -1.0}, "lora_alpha"),
        ({"lora_rank": 4, "lora_targets": "q_proj,"}, "lora_targets"),
        ({"lora_targets": "q_proj"}, "lora_targets: expected None without lora_rank"),
        ({"lora_rank": 4, "from_config": True}, "from_config"),
    ],
    ids=str,
)
def test_refused(options, message):
    pytest.importorskip("peft")
    with pytest.raises(InputError) as caught:
        RunOptions(teacher="teacher", student="student", data="data", **options).check()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "extra"), [({"teacher_quantization": "4bit"}, "[quantized]"), ({"lora_rank": 4}, "[lora]")], ids=str
)
def test_a_missing_package_is_named_by_its_extra(monkeypatch, options, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        RunOptions(teacher="teacher", student="student", data="data", **options).check()
    assert extra in str(caught.value)
