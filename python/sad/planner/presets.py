"""Configs of well-known models by name, so that `sad plan` needs no download."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from sad.errors import InputError
from sad.hub import is_local, pretrained_source
from sad.models import check_model_dir


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "vocab_size": 50257,
        "n_positions": 1024,
    }


def _opt(width: int, layers: int, heads: int, **other: Any) -> dict[str, Any]:
    sizes = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width, "num_hidden_layers": layers}
    fixed = {"model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048}
    return fixed | sizes | {"num_attention_heads": heads} | other


def _gated(kind: str, vocab: int, positions: int, **fixed: Any):
    """Returns a function from (H, I, layers, heads, key heads, tied) to the config of a model with a gated MLP."""

    def config(width: int, mlp: int, layers: int, heads: int, key_heads: int, tied: bool = False, **other: Any):
        return {
            "model_type": kind, "vocab_size": vocab, "max_position_embeddings": positions, "hidden_size": width,
            "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": key_heads, "tie_word_embeddings": tied,
        } | fixed | other  # fmt: skip

    return config


def _gemma3(vision: bool, width: int, mlp: int, layers: int, heads: int, key_heads: int, head_dim: int = 256):
    """Returns the config of a Gemma 3, with the vision tower of the larger models."""
    text = {
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": key_heads, "head_dim": head_dim, "vocab_size": 262208 if vision else 262144,
        "max_position_embeddings": 131072 if vision else 32768,
    }  # fmt: skip
    if not vision:
        return {"model_type": "gemma3_text", **text}
    tower = {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "patch_size": 14, "image_size": 896, "vision_use_head": False,
    }  # fmt: skip
    return {"model_type": "gemma3", "text_config": text, "vision_config": tower}


_llama = _gated("llama", 32000, 2048)
_llama3 = _gated("llama", 128256, 8192)
_llama32 = _gated("llama", 128256, 131072)
_qwen25 = _gated("qwen2", 151936, 32768)
_qwen25_large = _gated("qwen2", 152064, 131072)  # models from 7B on pad their embeddings further
_qwen3 = _gated("qwen3", 151936, 40960, head_dim=128)
_qwen3_moe = _gated("qwen3_moe", 151936, 40960, head_dim=128)
_mixtral = _gated("mixtral", 32000, 32768)

# Only the fields that decide sizes. All others have the default of transformers for the architecture.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "opt-125m": _opt(768, 12, 12),
    "opt-350m": _opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-2.7b": _opt(2560, 32, 32),
    "opt-6.7b": _opt(4096, 32, 32),
    "opt-13b": _opt(5120, 40, 40),
    "llama-7b": _llama(4096, 11008, 32, 32, 32),
    "llama-13b": _llama(5120, 13824, 40, 40, 40),
    "llama-30b": _llama(6656, 17920, 60, 52, 52),
    "llama-65b": _llama(8192, 22016, 80, 64, 64),
    "llama-3-8b": _llama3(4096, 14336, 32, 32, 8),
    "llama-3-70b": _llama3(8192, 28672, 80, 64, 8),
    "llama-3.2-1b": _llama32(2048, 8192, 16, 32, 8, tied=True, head_dim=64),
    "llama-3.2-3b": _llama32(3072, 8192, 28, 24, 8, tied=True, head_dim=128),
    "qwen2.5-0.5b": _qwen25(896, 4864, 24, 14, 2, tied=True),
    "qwen2.5-1.5b": _qwen25(1536, 8960, 28, 12, 2, tied=True),
    "qwen2.5-3b": _qwen25(2048, 11008, 36, 16, 2, tied=True),
    "qwen2.5-7b": _qwen25_large(3584, 18944, 28, 28, 4),
    "qwen2.5-14b": _qwen25_large(5120, 13824, 48, 40, 8),
    "qwen2.5-32b": _qwen25_large(5120, 27648, 64, 40, 8),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, 8, tied=True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, 8, tied=True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, 8, tied=True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, 8),
    "qwen3-14b": _qwen3(5120, 17408, 40, 40, 8),
    "qwen3-32b": _qwen3(5120, 25600, 64, 64, 8),
    "qwen3-30b-a3b": _qwen3_moe(2048, 6144, 48, 32, 4, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8),
    "mixtral-8x7b": _mixtral(4096, 14336, 32, 32, 8, num_local_experts=8, num_experts_per_tok=2),
    "gemma-3-270m": _gemma3(False, 640, 2048, 18, 4, 1),
    "gemma-3-1b": _gemma3(False, 1152, 6912, 26, 4, 1),
    "gemma-3-4b": _gemma3(True, 2560, 10240, 34, 8, 4),
    "gemma-3-12b": _gemma3(True, 3840, 15360, 48, 16, 8),
    "gemma-3-27b": _gemma3(True, 5376, 21504, 62, 32, 16, 128),
}
_SUFFIXES = ("-v0.1", "-instruct", "-base", "-hf", "-it", "-pt")


def config_of(argument: str, model: str) -> PretrainedConfig:
    """Returns the config of a model folder or of a well-known model. Downloads nothing.

    Args:
        argument: The argument's name for error messages: "teacher", "student".
        model: A folder with a `config.json`, a GGUF file, or a name in `CONFIGS`. The name may have an organization in front
            ("facebook/opt-13b"), capitals, and a suffix such as "-Instruct", "-Base", "-it" or "-hf".

    Raises:
        InputError: `model` is neither, or its config cannot be read.
    """
    if is_local(model):
        path = check_model_dir(argument, model)
        try:
            return AutoConfig.from_pretrained(**pretrained_source(path), trust_remote_code=False)
        except Exception as error:  # transformers raises many types for a malformed file
            remedy = "Load it with AutoConfig.from_pretrained to see the whole error."
            where = path / "config.json" if path.is_dir() else path
            raise InputError(str(where), "a config of transformers", str(error), remedy) from error
    name = _plain(model)
    if name not in CONFIGS:
        close = difflib.get_close_matches(name, CONFIGS, n=3, cutoff=0.5)
        remedy = f"Did you mean {' or '.join(close)}?" if close else "Known by name: " + ", ".join(CONFIGS) + "."
        raise InputError(argument, "a folder with a config.json or the name of a known model", repr(model), remedy)
    fields = dict(CONFIGS[name])
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def _plain(model: str) -> str:
    name = model.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-")
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name
