"""The live teacher: where it is placed, its logits, and how they are sharded."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from sad.errors import InputError
from sad.model_parts import weights_are_missing
from sad.teacher_cache.metadata import logit_columns
from sad.training.sharding import fill_from_main, is_sharded, shard_over_processes


def place_teacher(teacher: nn.Module, accelerator: Accelerator, *, shard: bool = False) -> nn.Module:
    """Puts the teacher into eval mode and, unless a device map or bitsandbytes placed it, onto the device.

    The dtype stays. `Accelerator.prepare_model` is not needed: it does not shard a model in evaluation mode, and it casts
    the logits to float32 under mixed precision.

    Args:
        teacher: The teacher. ZeRO stage 3 has sharded it already if it was loaded after the `SADConfig` was made.
        accelerator: The accelerator of the run.
        shard: Shard the teacher over all processes (`sad.training.sharding.shard_over_processes`).

    Raises:
        InputError: A teacher with this placement cannot be sharded.
    """
    teacher.eval()
    if any(hasattr(parameter, "ds_id") for parameter in teacher.parameters()):
        return _with_zero3_hooks(teacher, accelerator)
    placed = getattr(teacher, "hf_device_map", None) is not None or getattr(teacher, "is_quantized", False)
    if shard and not is_sharded(teacher):
        if placed:
            got = "one with a device map or quantized weights"
            remedy = "Load it in bfloat16 without a device map (--teacher-dtype bfloat16), or set teacher_sharding to false."
            raise InputError("teacher_sharding", "a teacher in a floating-point dtype on the CPU", got, remedy)
        if accelerator.num_processes == 1:
            remedy = "Start several processes (torchrun, accelerate launch), or set it to false."
            raise InputError("teacher_sharding", "false with one process", "true", remedy)
    if is_sharded(teacher) or placed:
        return teacher
    if weights_are_missing(teacher):
        fill_from_main(teacher, accelerator.device)
    return shard_over_processes(teacher, accelerator.device) if shard else teacher.to(accelerator.device)


def _with_zero3_hooks(teacher: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Adds the hooks of ZeRO stage 3 to a teacher that it has sharded, so that layers are gathered when they run."""
    import deepspeed

    config = copy.deepcopy(accelerator.state.deepspeed_plugin.deepspeed_config)
    for name in ("optimizer", "scheduler"):
        config.pop(name, None)
    for name in ("offload_optimizer", "stage3_gather_16bit_weights_on_model_save"):
        config["zero_optimization"].pop(name, None)
    sizes = {"reduce_bucket_size": 1.0, "stage3_prefetch_bucket_size": 0.9}
    hidden = teacher.config.get_text_config().hidden_size
    for name, factor in sizes.items():
        if config["zero_optimization"].get(name) == "auto":
            config["zero_optimization"][name] = int(factor * hidden * hidden)
    if config["zero_optimization"].get("stage3_param_persistence_threshold") == "auto":
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 10 * hidden
    config |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": 0.0}
    config.pop("train_batch_size", None)
    teacher.requires_grad_(False)
    deepspeed.initialize(model=teacher, config=config)[0].eval()
    return teacher


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
