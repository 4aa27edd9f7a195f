"""Splits a causal language model into its backbone and its head.

The losses from hidden states need the two parts separately. Models differ in what they do after the head: Gemma caps the
logits, Cohere and Granite scale them. So `split_model` runs four tokens through the parts and through the whole model, and
compares the logits.

FSDP2 and ZeRO stage 3 gather the weights of a module when it is called. So the loss runs inside the call of the model, and
inside the call of its head: the head is then whole, and its gradient goes back to the shards.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sad.errors import InputError

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

    def gathered(self) -> Head:
        """Returns the head with whole parameters. Each process keeps its own gradient, so all must have the same rows.

        Inside the call of the head, FSDP2 and ZeRO have gathered their shards. A weight that is still sharded there
        is split by tensor parallelism, whose processes share each batch.
        """
        return self._replace(weight=_gathered(self.weight), bias=_gathered(self.bias))


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
        self._is_checked = True  # `check` may defer its work

    def hidden(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns the hidden states (B, T, H) that the head receives. The backbone runs without a key-value cache.

        Call it inside the call of the whole model (`run`, `run_frozen`) if its weights may be sharded.
        """
        options = {} if getattr(self._config, "use_cache", None) is None else {"use_cache": False}
        return self._backbone(**batch, **options).last_hidden_state

    def forward(self, **batch: Any) -> tuple[Tensor, Head]:
        """Returns the hidden states (B, T, H) and the head."""
        return self.hidden(batch), self.head()

    def head(self) -> Head:
        """Returns the current head. Call it in every step, because adapters change the effective weight."""
        return Head(_weight_of(self._head), _bias_of(self._head), self._scale, self._softcap)

    def run(
        self,
        model: nn.Module,
        inner: nn.Module,
        batch: Mapping[str, Any],
        compute: Callable[[Tensor, Head], Tensor],
        context: Callable[[], AbstractContextManager] = nullcontext,
    ) -> Tensor:
        """Calls the model with `compute` in place of its head.

        The hooks of the wrapper, of the model and of the head fire. So a sharded head is gathered once, for `compute`, and
        the gradients of all weights are reduced and sharded again.

        Args:
            model: The model, wrapped or not.
            inner: The model without its wrapper.
            batch: The arguments of the backbone.
            compute: Receives the hidden states (B, T, H) and the head, and returns a tensor with a graph. Wrappers may cast
                it to another dtype.
            context: Makes the context in which everything runs, such as autocast.
        """

        def forward(**batch: Any) -> Tensor:
            with context():
                hidden = self.hidden(batch)
                with forward_as(self._head, lambda hidden: compute(hidden, self.head().gathered())):
                    return self._head(hidden)

        self._check_now(model, inner, context)
        with forward_as(inner, forward):
            return model(**batch)

    @torch.no_grad()
    def run_frozen(self, model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Head]:
        """Calls a model without a graph. Returns the hidden states (B, T, H) and the head, gathered if it is sharded.

        Args:
            model: The model; no wrapper surrounds it.
            batch: The arguments of the backbone.
        """
        self._check_now(model, model, nullcontext)
        if any(hasattr(parameter, "ds_id") for parameter in self._head.parameters()):
            kept: list[Head] = []

            def keep(hidden: Tensor, head: Head) -> Tensor:
                # ZeRO stage 3 releases the head by giving the parameter another tensor. This one stays.
                kept.append(head._replace(weight=head.weight.detach(), bias=_detached(head.bias)))
                return hidden

            hidden = self.run(model, model, batch, keep)
            return hidden, kept[0]
        with forward_as(model, lambda **batch: self.hidden(batch)):
            hidden = model(**batch)
        return hidden, self.head().gathered()

    def check(self, model: nn.Module) -> None:
        """Compares the logits of the parts with the logits of the whole model, or defers that to the first `run`.

        Weights that are still missing cannot be compared: ZeRO stage 3 gathers them only in the wrapped model, and FSDP's
        loading that saves host memory fills them later in all processes but one.

        Raises:
            ValueError: They differ, or the model is spread over devices.
        """
        if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
            raise ValueError("it is spread over several devices")
        if weights_are_missing(model):
            self._is_checked = False
        else:
            self._compare(model, model, 1e-3 if _weight_of(self._head).dtype == torch.float32 else 5e-2, nullcontext)

    def _check_now(self, model: nn.Module, inner: nn.Module, context: Callable[[], AbstractContextManager]) -> None:
        """Makes up for a check that was deferred. Mixed precision may be on by now."""
        if not self._is_checked:
            self._is_checked = True
            try:
                self._compare(model, inner, 5e-2, context)
            except ValueError as error:
                expected, remedy = "models with a separate backbone and head", "Set loss_from to logits."
                raise InputError("loss_from", expected, f"a {type(inner).__name__}: {error}", remedy) from error

    @torch.no_grad()
    def _compare(
        self, model: nn.Module, inner: nn.Module, tolerance: float, context: Callable[[], AbstractContextManager]
    ) -> None:
        device = next(inner.parameters()).device
        vocab = self._config.get_text_config().vocab_size if hasattr(self._config, "get_text_config") else 2
        ids = torch.arange(_PROBE_TOKENS, device=device)[None] % vocab
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with _eval_mode(inner):
            expected = model(**batch).logits.float()
            logits = self.run(model, inner, batch, lambda hidden, head: head.logits(hidden), context).float()
        scale = expected.abs().amax().clamp(min=1.0)
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


def weights_are_missing(model: nn.Module) -> bool:
    """Whether this process lacks weights of a model: ZeRO stage 3 has sharded it, or FSDP fills it later."""
    partitioned = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    loads_later = all(
        os.environ.get(name, "false").lower() in ("1", "true")
        for name in ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")
    )
    return partitioned or loads_later


def gathered_parameters(parameters: Iterable[nn.Parameter]) -> AbstractContextManager:
    """Returns a context in which parameters that ZeRO stage 3 has sharded are whole. Every process must enter it."""
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not partitioned:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(partitioned)


def model_digest(model: nn.Module) -> str:
    """Returns a hash that identifies a model: name, shape and up to 64 values of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        with gathered_parameters([parameter]):
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


def _detached(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach()


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
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:  # FSDP2 derives a class
        raise ValueError(f"its head is a {type(head).__name__}, not a linear layer")
    return head.weight


def _bias_of(head: nn.Module) -> Tensor | None:
    if hasattr(head, "modules_to_save") and hasattr(head, "active_adapters"):
        return _bias_of(head.modules_to_save[head.active_adapters[0]])
    return _bias_of(head.get_base_layer()) if hasattr(head, "get_base_layer") else head.bias
