"""Splits a causal language model into its backbone and its head.

The losses from hidden states need the two parts separately. Models differ in what they do after the head: Gemma caps the
logits, Cohere and Granite scale them. So `split_model` runs four tokens through the parts and through the whole model, and
compares the logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_PROBE_TOKENS = 4


class Head(NamedTuple):
    """The parameters of a language-model head.

    logits = softcap * tanh(scale * (hidden weight^T + bias) / softcap); without a softcap scale * (hidden weight^T + bias).
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """Returns logits (..., V) for hidden states (..., H). Gathers a weight that is sharded over processes."""
        z = nn.functional.linear(hidden, _gathered(self.weight), _gathered(self.bias)) * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


class ModelParts:
    """The backbone and the head of a causal language model, with or without LoRA adapters.

    Args:
        model: A `transformers` model with a language-model head, or a PEFT model of one.
        logit_scale: Scale of the logits. Default: from the model's configuration (`logit_scale`, `logits_scaling`).
        logit_softcap: Cap of the logits. Default: from the model's configuration (`final_logit_softcapping`).

    Raises:
        ValueError: The model has no separate backbone and head; the message says why.
    """

    def __init__(self, model: nn.Module, logit_scale: float | None = None, logit_softcap: float | None = None) -> None:
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise ValueError("its adapter adds virtual tokens, which have no labels")
        whole = model.get_base_model() if hasattr(model, "get_base_model") else model
        backbone = getattr(whole, "base_model", None)
        head = whole.get_output_embeddings() if hasattr(whole, "get_output_embeddings") else None
        if backbone is None or backbone is whole or head is None:
            raise ValueError("it has no separate backbone and language-model head")
        _weight_of(head)  # raises if the head has no weight
        config = whole.config
        if logit_scale is None:
            logit_scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        if logit_softcap is None:
            logit_softcap = getattr(config, "final_logit_softcapping", None)
        self._backbone, self._head, self._config = backbone, head, config
        self._scale, self._softcap = logit_scale, logit_softcap

    def hidden(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns the hidden states (B, T, H) that the head receives. The backbone runs without a key-value cache."""
        options = {} if getattr(self._config, "use_cache", None) is None else {"use_cache": False}
        return self._backbone(**batch, **options).last_hidden_state

    def forward(self, **batch: Any) -> tuple[Tensor, Head]:
        """Returns the hidden states (B, T, H) and the head."""
        return self.hidden(batch), self.head()

    def head(self) -> Head:
        """Returns the current head. Call it in every step, because adapters change the effective weight."""
        return Head(_weight_of(self._head), _bias_of(self._head), self._scale, self._softcap)

    @torch.no_grad()
    def check(self, model: nn.Module) -> None:
        """Compares the logits of the parts with the logits of the whole model.

        Raises:
            ValueError: They differ, or the weights are sharded in a way that the parts cannot use.
        """
        if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            raise ValueError("ZeRO stage 3 has sharded its weights")
        if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
            raise ValueError("it is spread over several devices")
        device = self._head.weight.device if hasattr(self._head, "weight") else next(model.parameters()).device
        vocab = self._config.get_text_config().vocab_size if hasattr(self._config, "get_text_config") else 2
        ids = torch.arange(_PROBE_TOKENS, device=device)[None] % vocab
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with _eval_mode(model):
            expected = model(**batch).logits.float()
            logits = self.head().logits(self.hidden(batch)).float()
        scale = expected.abs().amax().clamp(min=1.0)
        tolerance = 1e-3 if _weight_of(self._head).dtype == torch.float32 else 5e-2
        if logits.shape != expected.shape or not bool(((logits - expected).abs() <= tolerance * scale).all()):
            raise ValueError("its logits are not what its head and its configuration describe")


def split_model(model: nn.Module, logit_scale: float | None = None, logit_softcap: float | None = None) -> ModelParts:
    """Splits a model and checks that the parts compute the logits of the whole.

    Args:
        model: As for `ModelParts`, likewise `logit_scale` and `logit_softcap`.

    Raises:
        ValueError: The model cannot be split, or the parts compute other logits.
    """
    parts = ModelParts(model, logit_scale, logit_softcap)
    parts.check(model)
    return parts


@contextmanager
def forward_as(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replaces the forward method of `module` inside the `with` block.

    Wrappers such as DDP and FSDP attach their work to the call of the whole module. Calling a submodule directly would
    bypass them, and gradients would not be averaged over processes.

    Args:
        module: The unwrapped model. Call its wrapper inside the block.
        forward: Receives the arguments of the call.
    """
    own = module.__dict__.get("forward")  # accelerate sets one on the instance under mixed precision
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def model_digest(model: nn.Module) -> str:
    """Returns a hash that identifies a model: name, shape and up to 64 values of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = _gathered(parameter.detach()).flatten()
        values = values[:: max(1, values.numel() // 64)][:64].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _gathered(x: Tensor | None) -> Tensor | None:
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def _weight_of(head: nn.Module) -> Tensor:
    """Returns the weight (V, H) of a linear head: plain, with LoRA adapters, or PEFT's trained copy (`modules_to_save`)."""
    if hasattr(head, "modules_to_save") and hasattr(head, "active_adapters"):
        return _weight_of(head.modules_to_save[head.active_adapters[0]])
    if hasattr(head, "get_delta_weight"):
        weight = _weight_of(head.get_base_layer())
        if not head.merged and not head.disable_adapters:
            for name in head.active_adapters:
                if name in head.lora_A:
                    weight = weight + head.get_delta_weight(name)
        return weight
    if type(head) is not nn.Linear:
        raise ValueError(f"its head is a {type(head).__name__}, not a linear layer")
    return head.weight


def _bias_of(head: nn.Module) -> Tensor | None:
    if hasattr(head, "modules_to_save") and hasattr(head, "active_adapters"):
        return _bias_of(head.modules_to_save[head.active_adapters[0]])
    return _bias_of(head.get_base_layer()) if hasattr(head, "get_base_layer") else head.bias
