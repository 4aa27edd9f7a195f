"""The live teacher: where it is placed, its logits, and how they are sharded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from sad.errors import InputError
from sad.teacher_cache.metadata import logit_columns


def place_teacher(teacher: nn.Module, device: torch.device) -> nn.Module:
    """Puts the teacher into eval mode and, unless a device map or bitsandbytes placed it, onto the device.

    The dtype stays. `Accelerator.prepare_model` is not needed: it does not shard a model in evaluation mode, and it casts
    the logits to float32 under mixed precision.

    Raises:
        InputError: ZeRO stage 3 has sharded the teacher.
    """
    if any(hasattr(parameter, "ds_id") for parameter in teacher.parameters()):
        remedy = "Load it before the SADConfig is made, or train with ZeRO stage 2 or FSDP."
        raise InputError("teacher_model", "a model with all its weights", "weights sharded by ZeRO stage 3", remedy)
    teacher.eval()
    placed = getattr(teacher, "hf_device_map", None) is not None or getattr(teacher, "is_quantized", False)
    return teacher if placed else teacher.to(device)


@torch.no_grad()
def teacher_logits(teacher: nn.Module, batch: Mapping[str, Tensor], accelerator: Accelerator) -> Tensor:
    """Returns the teacher's logits (B, T, V) for `input_ids` and `attention_mask`, without a graph or a key-value cache."""
    options = {"use_cache": False} if hasattr(teacher, "config") else {}
    with accelerator.autocast():
        return teacher(**batch, **options).logits


def vocabulary_group(model: nn.Module, logits: Tensor, accelerator: Accelerator) -> ProcessGroup | None:
    """Returns the tensor-parallel process group if `logits` hold only this process's slice of the vocabulary.

    transformers gathers the logits of a tensor-parallel model by default. A plan with `"lm_head": "colwise"` leaves them
    sharded.

    Args:
        model: The unwrapped model that computed the logits.
        logits: (..., V) or a slice of the columns.
        accelerator: The accelerator, which knows the device mesh.
    """
    parallelism = getattr(accelerator, "parallelism_config", None)
    if parallelism is None or not parallelism.tp_enabled or logits.shape[-1] >= logit_columns(model):
        return None
    return accelerator.torch_device_mesh["tp"].get_group()
