"""A causal language model taken apart into what makes hidden states and the head that makes logits of them.

The loss from hidden states needs the two apart. Models differ in what they do around their head (Gemma caps logits, Cohere
and Granite scale them), so whether the parts make the whole is tried on four tokens, not assumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_PROBE_TOKENS = 4


class Head(NamedTuple):
    """logits = cap tanh(scale (hidden weight^T + bias) / cap), without a cap scale (hidden weight^T + bias)."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) from (..., H)."""
        z = nn.functional.linear(hidden, self.weight, self.bias) * self.scale
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


class ModelParts:
    """The two parts of a causal language model, also of one with LoRA adapters, on the head as well.

    Args:
        model: A `transformers` model with a language-model head, or a PEFT model of one.

    Raises:
        ValueError: It does not come apart; the message says why.
    """

    def __init__(self, model: nn.Module) -> None:
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise ValueError("its adapter adds virtual tokens, which have no labels")
        whole = model.get_base_model() if hasattr(model, "get_base_model") else model
        backbone = getattr(whole, "base_model", None)
        head = whole.get_output_embeddings() if hasattr(whole, "get_output_embeddings") else None
        if backbone is None or backbone is whole or head is None:
            raise ValueError("it has no separate body and language-model head")
        self._backbone, self._head, self._config = backbone, head, whole.config
        _weight_of(head)  # that it has one

    def hidden(self, batch: Mapping[str, Any]) -> Tensor:
        """(B, T, H), what the head takes, without a cache."""
        options = {} if getattr(self._config, "use_cache", None) is None else {"use_cache": False}
        return self._backbone(**batch, **options).last_hidden_state

    def head(self) -> Head:
        """As it is now: the effective weight of a head with adapters is theirs to change."""
        config = self._config
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        return Head(_weight_of(self._head), _bias_of(self._head), scale, getattr(config, "final_logit_softcapping", None))

    @torch.no_grad()
    def check(self, model: nn.Module) -> None:
        """Compares with the logits of the whole model.

        Raises:
            ValueError: They differ.
        """
        if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            raise ValueError("ZeRO stage 3 took its weights apart")
        if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
            raise ValueError("it is spread over several devices")
        device = self._head.weight.device if hasattr(self._head, "weight") else next(model.parameters()).device
        vocab = self._config.get_text_config().vocab_size if hasattr(self._config, "get_text_config") else 2
        ids = torch.arange(_PROBE_TOKENS, device=device)[None] % vocab
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with _evaluating(model):
            whole = model(**batch).logits.float()
            parts = self.head().logits(self.hidden(batch)).float()
        scale = whole.abs().amax().clamp(min=1.0)
        tolerance = 1e-3 if _dtype_of(self._head) == torch.float32 else 5e-2
        if parts.shape != whole.shape or not bool(((parts - whole).abs() <= tolerance * scale).all()):
            raise ValueError("it does more to its logits than its head and its configuration say")


def split_model(model: nn.Module) -> ModelParts:
    """The parts, after a look at whether they make the whole.

    Raises:
        ValueError: They do not, or there are none.
    """
    parts = ModelParts(model)
    parts.check(model)
    return parts


@contextmanager
def forward_as(module: nn.Module, forward: Any) -> Iterator[None]:
    """While this lives, calling `module`, or what wraps it, runs `forward`.

    Wrappers for data parallelism hang what they do on the call of the whole module; a part of it called beside them would
    leave its gradients on its own process.
    """
    own = module.__dict__.get("forward")  # of the instance, as accelerate puts one there under mixed precision
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in was_training:
            module.training = training


def _dtype_of(head: nn.Module) -> torch.dtype:
    return _weight_of(head).dtype


def _weight_of(head: nn.Module) -> Tensor:
    """(V, H), of a linear layer, plain or with LoRA adapters, or of the copy that PEFT trains in its place."""
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
        raise ValueError(f"its head is a {type(head).__name__}, whose products are its own")
    return head.weight


def _bias_of(head: nn.Module) -> Tensor | None:
    if hasattr(head, "modules_to_save") and hasattr(head, "active_adapters"):
        return _bias_of(head.modules_to_save[head.active_adapters[0]])
    return _bias_of(head.get_base_layer()) if hasattr(head, "get_base_layer") else head.bias


def model_digest(model: nn.Module) -> str:
    """A hash that tells one teacher from another: names, shapes and up to 64 values of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        values = values[:: max(1, values.numel() // 64)][:64].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()
