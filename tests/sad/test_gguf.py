"""GGUF files as models: the same logits as the model they were written from, trainable weights, one message per failure."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from sad import hub, models
from sad.errors import InputError
from sad.planner.presets import config_of
from tests.sad.training import tiny

needs_gguf = pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed")

TEXT = "Reasoning: I look for the mug.\nAction: go to desk 1\n"

_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def _qwen() -> Qwen2ForCausalLM:
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(
        vocab_size=300, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, **sizes
    )
    return Qwen2ForCausalLM(config).eval()


def _write_gguf(path: Path, model: Qwen2ForCausalLM) -> None:
    """Writes a model and the tiny tokenizer as llama.cpp does: matrices as 8-bit blocks (Q8_0), vectors in float32."""
    import gguf

    writer, config, tokenizer = gguf.GGUFWriter(path, "qwen2"), model.config, tiny.tokenizer()
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(300)))
    writer.add_token_merges([" ".join(pair) for pair in _merges(tokenizer)])
    writer.add_eos_token_id(0)
    for name, tensor in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if stem.startswith("model.layers."):
            number, _, part = stem.removeprefix("model.layers.").partition(".")
            target = f"blk.{number}.{_LAYER[part]}"
        else:
            target = _ENDS[stem]
        values, how = tensor.numpy(), gguf.GGMLQuantizationType.Q8_0
        if tensor.dim() == 2:
            writer.add_tensor(f"{target}.{kind}", gguf.quantize(values, how), raw_dtype=how)
        else:
            writer.add_tensor(f"{target}.{kind}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _merges(tokenizer) -> list[tuple[str, str]]:
    found = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in found]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny-q8_0.gguf"
    _write_gguf(path, _qwen())
    return path


@needs_gguf
def test_a_file_is_a_model(file):
    """The logits are those of the source up to 8-bit rounding, and the tokenizer and the config are in the file."""
    source, loaded = _qwen(), models.load_model("teacher", file).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected, found = source(ids).logits, loaded(ids).logits
    assert (found - expected).abs().max() < 0.02 * expected.abs().max() and not torch.equal(found, expected)
    assert loaded.dtype == torch.float32 and models.load_model("teacher", file, dtype="bfloat16").dtype == torch.bfloat16
    assert models.load_tokenizer("teacher", file)(TEXT)["input_ids"] == tiny.tokenizer()(TEXT)["input_ids"]
    assert config_of("teacher", str(file)).num_hidden_layers == 2


@needs_gguf
def test_a_student_is_trained_and_saved_as_a_folder(file, tmp_path):
    """transformers takes a model from a GGUF file for a quantized one, which it would refuse to train."""
    from sad.training.config import SADConfig
    from sad.training.trainer import SADTrainer

    config = SADConfig(output_dir=str(tmp_path), **tiny.CONFIG | {"max_steps": 1, "warmup_steps": 0})
    trainer = SADTrainer(file, tiny.model("llama", seed=1, sharpness=30), config, tiny.examples(8))
    before = {name: x.detach().clone() for name, x in trainer.model.named_parameters()}
    trainer.train()
    trainer.create_model_card()
    assert "| student | tiny-q8_0.gguf |" in (tmp_path / "README.md").read_text()
    trainer.save_model(str(tmp_path / "model"))
    trained = dict(trainer.model.named_parameters())
    saved = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "model").named_parameters())
    assert all(torch.equal(x, trained[name]) for name, x in saved.items())
    assert not torch.equal(saved["lm_head.weight"], before["lm_head.weight"])
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(TEXT)["input_ids"] == tiny.tokenizer()(TEXT)["input_ids"]


@needs_gguf
def test_refused_with_a_reason(file, tmp_path):
    with pytest.raises(InputError, match="teacher_quantization: expected None for a GGUF file"):
        models.load_model("teacher", file, quantization="8bit")
    with pytest.raises(InputError, match="student: expected a folder with lora_rank, got the GGUF file"):
        models.add_adapters(_qwen(), file, 4, None, None, 0)
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match="teacher: expected a causal language model in"):
        models.load_model("teacher", damaged)
    with pytest.raises(InputError, match="teacher's tokenizer: expected"):
        models.load_tokenizer("teacher", damaged)


def test_a_folder_with_only_a_file_names_it(tmp_path):
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"without one\. Pass the GGUF file: .*model-q4\.gguf"):
        models.load_model("teacher", tmp_path)


def test_the_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"teacher: expected the package gguf.*pip install '\.\[gguf\]'"):
        hub.model_folder("teacher", tmp_path / "model.gguf")
