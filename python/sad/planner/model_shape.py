"""The sizes of a model that decide its memory, read from its config: widths, exact parameter counts, and layer structure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from sad.errors import InputError
from sad.planner.request import LORA_TARGETS

_PLAIN_ACTIVATIONS = ("relu", "gelu", "gelu_pytorch_tanh", "silu")


@dataclass(frozen=True)
class Family:
    """The structure of an architecture's layers in transformers.

    Args:
        rms_norm: True: an RMS norm written in PyTorch, which saves its input in float32 and the normalized rows. False:
            LayerNorm.
        gated: Whether the MLP multiplies an activated gate with a second projection.
        attention_inputs: Number of linear layers that read the input of attention: 1 if q, k and v are fused, else 3.
        qk_norm: Whether queries and keys are normalized per head.
        activation: The config's field for the activation.
        norms: Number of norms of the residual stream per layer.
        float32_norm: Whether RMS norms multiply with their weight in float32.
        dropout: The config's field for the dropout of the residual branches.
        embedding_dropout: The config's field for the dropout of the embeddings.
    """

    rms_norm: bool
    gated: bool
    attention_inputs: int
    qk_norm: bool
    activation: str
    dropout: str | None = None
    embedding_dropout: str | None = None
    norms: int = 2
    float32_norm: bool = False


_GATED = Family(rms_norm=True, gated=True, attention_inputs=3, qk_norm=False, activation="hidden_act")
FAMILIES = {
    "gpt2": Family(False, False, 1, False, "activation_function", "resid_pdrop", "embd_pdrop"),
    "opt": Family(False, False, 3, False, "activation_function", "dropout"),
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": replace(_GATED, qk_norm=True),
    "gemma": replace(_GATED, float32_norm=True),
    "gemma3_text": replace(_GATED, qk_norm=True, activation="hidden_activation", norms=4, float32_norm=True),
}


@dataclass(frozen=True)
class Matrix:
    """The weight of a linear layer, of shape (inputs, outputs)."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model. Counts are numbers of parameters; a tied head counts once.

    Args:
        family: Structure of its layers.
        layers: Number of decoder layers.
        hidden: H, width of the residual stream.
        query_width: Number of query heads times their width.
        key_width: Number of key heads times their width.
        heads: Number of query heads.
        mlp_width: I, width of the MLP.
        vocab: V, rows of the LM head.
        lm_head_width: Columns of the LM head. Differs from `hidden` if the model projects before its head.
        positions: Maximum number of tokens per sequence; None: unlimited.
        tied: Whether head and embedding share one parameter.
        activation: Name of the MLP's activation.
        has_dropout: Whether the residual branches have dropout.
        has_embedding_dropout: Whether the embeddings have dropout.
        parameters: All parameters.
        embeddings: Parameters in embeddings.
        linear: Parameters in linear layers except the head; autocast copies them.
        factored: Sum of rows + columns over all matrices, plus the lengths of all vectors: the numbers in Adafactor's state.
        largest: Parameters of the largest tensor.
        matrices: The linear layers of one decoder layer.
    """

    family: Family
    layers: int
    hidden: int
    query_width: int
    key_width: int
    heads: int
    mlp_width: int
    vocab: int
    lm_head_width: int
    positions: int | None
    tied: bool
    activation: str
    has_dropout: bool
    has_embedding_dropout: bool
    parameters: int
    embeddings: int
    linear: int
    factored: int
    largest: int
    matrices: tuple[Matrix, ...]

    @property
    def lm_head(self) -> int:
        """Parameters of the LM head, tied or not."""
        return self.vocab * self.lm_head_width

    def adapted(self, target: str) -> tuple[Matrix, ...]:
        """Returns the linear layers of one decoder layer that get an adapter."""
        suffixes = LORA_TARGETS[target]
        return tuple(m for m in self.matrices if suffixes is None or m.name.rpartition(".")[2] in suffixes)

    def adapter_parameters(self, rank: int, target: str) -> int:
        """Returns the parameters of all adapters: two matrices of rank `rank` per adapted layer."""
        return self.layers * sum(rank * (m.inputs + m.outputs) for m in self.adapted(target))


def shape_of(name: str, config: PretrainedConfig) -> ModelShape:
    """Returns the sizes of a config's model. Builds the model on the meta device, so nothing is allocated.

    A teacher may have any architecture with a decoder and a language-model head, because only its weights and the largest
    intermediate state of a layer count. A student must be of a family in `FAMILIES`.

    Args:
        name: The argument's name for error messages: "teacher", "student".
        config: Config of a causal language model, or of a model with one in its `text_config`.

    Raises:
        InputError: The model cannot be sized, or the config contradicts itself; the message says why.
    """
    text = config.get_text_config()
    family = FAMILIES.get(text.model_type)
    if name != "teacher":
        _check_student(name, text, family)
    if getattr(config, "quantization_config", None) is not None:
        remedy = "Pass the folder of the weights in 16 bits, with --teacher-bits for a quantized teacher."
        raise InputError(name, "a config of weights that are not quantized", "one with a quantization_config", remedy)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, RuntimeError, AttributeError, ZeroDivisionError) as error:
        reason = str(error).strip().splitlines()[0].partition(" Model type should be one of")[0]
        raise InputError(name, "a config that describes a model", reason, "Fix its config.json.") from error
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if decoder is None or head is None:
        raise InputError(name, "a decoder with a language-model head", type(model).__name__, "Choose another model.")
    layers = _size(name, text, "num_hidden_layers")
    hidden, heads = _size(name, text, "hidden_size"), _size(name, text, "num_attention_heads")
    head_dim = getattr(text, "head_dim", None) or hidden // heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    embedding = model.get_input_embeddings().weight
    parameters = list(model.parameters())
    known = {id(p) for p in chain(decoder.parameters(), head.parameters(), [embedding])}
    beside = sum(p.numel() for p in parameters if id(p) not in known)
    if beside and name != "teacher":
        got = f"a {type(model).__name__} with {beside:,} parameters beside them"
        raise InputError(name, "a model of a decoder and a head", got, "Pass a folder with its text model only.")
    linear = sum(m.inputs * m.outputs for m in _matrices(model, without=head))
    activation = getattr(text, family.activation) if family is not None else "silu"
    family = family or _GATED  # of an unknown teacher only the intermediate state of an MLP counts
    return ModelShape(
        family=family,
        layers=layers,
        hidden=hidden,
        query_width=heads * head_dim,
        key_width=key_heads * head_dim,
        heads=heads,
        mlp_width=_mlp_width(name, text),
        vocab=head.weight.shape[0],
        lm_head_width=head.weight.shape[1],
        positions=getattr(text, "max_position_embeddings", None),
        tied=head.weight is embedding,
        activation=activation,
        has_dropout=bool(family.dropout and getattr(text, family.dropout)),
        has_embedding_dropout=bool(family.embedding_dropout and getattr(text, family.embedding_dropout)),
        parameters=sum(p.numel() for p in parameters),
        embeddings=sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)),
        linear=linear,
        factored=sum(p.shape[0] + p.shape[1] if p.dim() == 2 else p.numel() for p in parameters),
        largest=max(p.numel() for p in parameters),
        matrices=tuple(_matrices(decoder, ".0.")),
    )


def _check_student(name: str, text: PretrainedConfig, family: Family | None) -> None:
    """Checks that there are formulas for the activations of a student."""
    remedy = "Measure this model instead: run some steps and read torch.cuda.max_memory_allocated()."
    if family is None:
        why = text.model_type
        if _experts(text):
            why += ", whose experts keep activations that depend on the routing"
        elif getattr(text, "attn_logit_softcapping", None):
            why += ", whose attention scores are capped, so that their matrices may be kept"
        raise InputError(name, "a model of a known family: " + ", ".join(FAMILIES), why, remedy)
    activation = getattr(text, family.activation)
    if activation not in _PLAIN_ACTIVATIONS and activation != "gelu_new":
        known = ", ".join((*_PLAIN_ACTIVATIONS, "gelu_new"))
        raise InputError(name, f"one of the activations {known}", activation, "Measure this model instead.")


def _size(name: str, config: PretrainedConfig, field: str) -> int:
    """Returns a field of a config that must be a positive number."""
    value = getattr(config, field, None)
    if not isinstance(value, int) or value < 1:
        what = "a model with layers" if field == "num_hidden_layers" else f"a config with {field}"
        remedy = "Fix its config.json." if value is not None else "Measure this model instead."
        raise InputError(name, what, f"{value} ({config.model_type})", remedy)
    return value


def _matrices(module: nn.Module, part: str = "", without: nn.Module | None = None) -> Iterator[Matrix]:
    """Yields the linear layers whose dotted names contain `part`, except `without`."""
    for name, layer in module.named_modules():
        if part not in f".{name}." or layer is without:
            continue
        if isinstance(layer, nn.Linear):
            yield Matrix(name, layer.in_features, layer.out_features)
        elif isinstance(layer, Conv1D):
            yield Matrix(name, layer.nx, layer.nf)


def _experts(config: PretrainedConfig) -> int:
    """Returns the number of experts per token; 0 for a dense model."""
    found = (getattr(config, field, None) for field in ("num_local_experts", "num_experts", "n_routed_experts"))
    if not any(isinstance(count, int) and count > 1 for count in found):
        return 0
    return getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k_experts", None) or 1


def _mlp_width(name: str, config: PretrainedConfig) -> int:
    """Returns I. For experts it is the numbers per token in all of them together, with their gathered inputs."""
    if config.model_type == "gpt2":
        return config.n_inner or 4 * config.hidden_size
    if config.model_type == "opt":
        return config.ffn_dim
    if experts := _experts(config):
        width = getattr(config, "moe_intermediate_size", None) or _size(name, config, "intermediate_size")
        return experts * (width + config.hidden_size)
    return _size(name, config, "intermediate_size")
