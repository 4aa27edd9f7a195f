"""The sizes of a model that decide its memory, read from its config: widths, exact parameter counts, and layer structure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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


_GATED = Family(rms_norm=True, gated=True, attention_inputs=3, qk_norm=False, activation="hidden_act")
FAMILIES = {
    "gpt2": Family(False, False, 1, False, "activation_function", "resid_pdrop", "embd_pdrop"),
    "opt": Family(False, False, 3, False, "activation_function", "dropout"),
    "llama": _GATED,
    "mistral": _GATED,
    "qwen2": _GATED,
    "qwen3": Family(rms_norm=True, gated=True, attention_inputs=3, qk_norm=True, activation="hidden_act"),
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

    Args:
        name: The argument's name for error messages: "teacher", "student".
        config: Config of a causal language model.

    Raises:
        InputError: The architecture is not in `FAMILIES`, or the config contradicts itself.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        remedy = "Measure this model instead: run some steps and read torch.cuda.max_memory_allocated()."
        raise InputError(name, "a model of a known family: " + ", ".join(FAMILIES), config.model_type, remedy)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, RuntimeError, AttributeError, ZeroDivisionError) as error:
        raise InputError(name, "a config that describes a model", str(error), "Fix its config.json.") from error
    activation = getattr(config, family.activation)
    if activation not in _PLAIN_ACTIVATIONS and activation != "gelu_new":
        known = ", ".join((*_PLAIN_ACTIVATIONS, "gelu_new"))
        raise InputError(name, f"one of the activations {known}", activation, "Measure this model instead.")
    layers = config.num_hidden_layers
    if layers < 1:
        raise InputError(name, "a config of a model with layers", f"{layers} layers", "Fix its config.json.")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    matrices = tuple(_matrices(model.get_decoder(), ".0."))
    parameters = list(model.parameters())
    linear = sum(m.inputs * m.outputs for m in _matrices(model.get_decoder()))
    return ModelShape(
        family=family,
        layers=layers,
        hidden=config.hidden_size,
        query_width=config.num_attention_heads * head_dim,
        key_width=key_heads * head_dim,
        heads=config.num_attention_heads,
        mlp_width=_mlp_width(config),
        vocab=head.shape[0],
        lm_head_width=head.shape[1],
        positions=getattr(config, "max_position_embeddings", None),
        tied=head is embedding,
        activation=activation,
        has_dropout=bool(family.dropout and getattr(config, family.dropout)),
        has_embedding_dropout=bool(family.embedding_dropout and getattr(config, family.embedding_dropout)),
        parameters=sum(p.numel() for p in parameters),
        embeddings=sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)),
        linear=linear,
        factored=sum(p.shape[0] + p.shape[1] if p.dim() == 2 else p.numel() for p in parameters),
        largest=max(p.numel() for p in parameters),
        matrices=matrices,
    )


def _matrices(decoder: nn.Module, part: str = "") -> Iterator[Matrix]:
    """Yields the linear layers whose dotted names contain `part`."""
    for name, module in decoder.named_modules():
        if part not in f".{name}.":
            continue
        if isinstance(module, nn.Linear):
            yield Matrix(name, module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            yield Matrix(name, module.nx, module.nf)


def _mlp_width(config: PretrainedConfig) -> int:
    if config.model_type == "gpt2":
        return config.n_inner or 4 * config.hidden_size
    return config.ffn_dim if config.model_type == "opt" else config.intermediate_size
