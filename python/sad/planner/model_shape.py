"""What the memory of a model depends on, read from its config: sizes, exact parameter counts, and how its layers compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from sad.errors import InputError

LORA_TARGETS = {"qv": ("q_proj", "v_proj", "c_attn"), "all": None}  # by the ends of the modules' names; None: all
_PLAIN_ACTIVATIONS = ("relu", "gelu", "gelu_pytorch_tanh", "silu")


@dataclass(frozen=True)
class Family:
    """How the layers of an architecture compute, as transformers writes them.

    Args:
        rms_norm: A norm written out in PyTorch, which keeps its input in float32 and the normalized rows; else LayerNorm.
        gated: The MLP multiplies an activated gate with a second projection.
        attention_inputs: Linear layers that read the rows before attention: one if fused, else three.
        qk_norm: Queries and keys are normalized per head.
        activation: The config's name for the activation.
        dropout: The config's name for the dropout of the residual branches.
        embedding_dropout: The config's name for that of the embeddings.
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
    """A linear layer's weight, of shape `inputs` by `outputs`."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model. Counts are of parameters; a head that is tied to the embedding is counted once.

    Args:
        family: How its layers compute.
        layers: Their number.
        hidden: Width of the residual stream.
        queries: Heads times their width.
        keys: Key heads times their width.
        heads: Number of query heads.
        mlp: Width of the MLP.
        vocab: Rows of the head.
        width: Columns of the head; other than `hidden` where the model projects in front of it.
        positions: Tokens it can take.
        tied: Head and embedding are one parameter.
        activation: Its name.
        has_dropout: On the residual branches.
        has_embedding_dropout: On the embeddings.
        parameters: All of them.
        embeddings: Those in embeddings.
        linear: Those in linear layers besides the head, which autocast copies.
        factored: Rows plus columns of every matrix and the length of every vector, what Adafactor keeps.
        largest: The largest single parameter.
        matrices: The linear layers of one decoder layer.
    """

    family: Family
    layers: int
    hidden: int
    queries: int
    keys: int
    heads: int
    mlp: int
    vocab: int
    width: int
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
    def head(self) -> int:
        """Parameters of the head, tied or not."""
        return self.vocab * self.width

    def adapted(self, target: str) -> tuple[Matrix, ...]:
        """The linear layers of one decoder layer that get an adapter."""
        ends = LORA_TARGETS[target]
        return tuple(m for m in self.matrices if ends is None or m.name.rpartition(".")[2] in ends)

    def adapter_parameters(self, rank: int, target: str) -> int:
        """Two matrices of `rank` for each adapted layer."""
        return self.layers * sum(rank * (m.inputs + m.outputs) for m in self.adapted(target))


def shape_of(name: str, config: PretrainedConfig) -> ModelShape:
    """The sizes of the model that a config describes, from the model itself on the meta device.

    Args:
        name: What the user calls it, for messages.
        config: Of a causal language model.

    Raises:
        InputError: The architecture is none whose memory is known, or the config contradicts itself.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        remedy = "Measure such a model: run some steps and read torch.cuda.max_memory_allocated()."
        raise InputError(name, "a model of a known family: " + ", ".join(FAMILIES), config.model_type, remedy)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, RuntimeError, AttributeError, ZeroDivisionError) as error:
        raise InputError(name, "a config of which a model can be made", str(error), "Mend its config.json.") from error
    activation = getattr(config, family.activation)
    if activation not in _PLAIN_ACTIVATIONS and activation != "gelu_new":
        known = ", ".join((*_PLAIN_ACTIVATIONS, "gelu_new"))
        raise InputError(name, f"one of the activations {known}", activation, "Measure such a model instead.")
    layers = config.num_hidden_layers
    if layers < 1:
        raise InputError(name, "a config of a model with layers", f"{layers} of them", "Mend its config.json.")
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    matrices = tuple(_matrices(model.get_decoder(), lambda found: ".0." in f".{found}."))
    parameters = list(model.parameters())
    linear = sum(m.inputs * m.outputs for m in _matrices(model.get_decoder(), lambda found: True))
    return ModelShape(
        family=family,
        layers=layers,
        hidden=config.hidden_size,
        queries=config.num_attention_heads * head_width,
        keys=key_heads * head_width,
        heads=config.num_attention_heads,
        mlp=_mlp_width(config),
        vocab=head.shape[0],
        width=head.shape[1],
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


def _matrices(decoder: nn.Module, chosen: Callable[[str], bool]):
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear) and chosen(name):
            yield Matrix(name, module.in_features, module.out_features)
        elif isinstance(module, Conv1D) and chosen(name):
            yield Matrix(name, module.nx, module.nf)


def _mlp_width(config: PretrainedConfig) -> int:
    if config.model_type == "gpt2":
        return config.n_inner or 4 * config.hidden_size
    return config.ffn_dim if config.model_type == "opt" else config.intermediate_size
