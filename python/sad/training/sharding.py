"""Weights that are sharded over processes: FSDP2 on the CPU, the sharded teacher, and checks of the launch."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, distributed, nn
from transformers import TrainingArguments

from sad.errors import InputError
from sad.training.peers import launched_processes


def check_launch(args: TrainingArguments) -> None:
    """Checks that the processes of a launcher work together.

    Without a GPU, transformers ignores the launcher unless `use_cpu` is set: each process would train alone, and all would
    write to one folder.

    Raises:
        InputError: They would train alone.
    """
    launched = launched_processes()
    if launched > 1 and args.world_size != launched:
        got = f"{args.world_size}, so that each process would train alone"
        remedy = "Processes on CPUs need use_cpu (--use-cpu); on GPUs, check that torch.cuda.is_available()."
        raise InputError("world_size", f"the {launched} processes that were launched (WORLD_SIZE)", got, remedy)


def fsdp_plugin(args: TrainingArguments) -> FullyShardedDataParallelPlugin | None:
    """Returns the FSDP plugin that the arguments or the environment of `accelerate launch` ask for, or None."""
    if args.fsdp_plugin_args is not None:
        return FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return FullyShardedDataParallelPlugin() if asked else None


def use_fsdp_on_cpu(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | None) -> None:
    """Turns on FSDP2 for processes on CPUs. Accelerate ignores the configuration there, although PyTorch supports it.

    Args:
        accelerator: The accelerator. It changes if FSDP was asked for and its processes are on CPUs.
        plugin: The FSDP plugin of the configuration, or None.

    Raises:
        InputError: The configuration asks for FSDP version 1.
    """
    if plugin is None or accelerator.state.distributed_type != DistributedType.MULTI_CPU:
        return
    if plugin.fsdp_version != 2:
        remedy = "Set fsdp_version: 2 in the configuration of accelerate, or version: 2 in fsdp_config."
        raise InputError("fsdp_version", "2 on the CPU", str(plugin.fsdp_version), remedy)
    # Accelerate's own code for GPUs sets the same three.
    PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin


def is_sharded(model: nn.Module) -> bool:
    """Whether processes share the weights, so that all have to call the model equally often."""
    return any(hasattr(parameter, "ds_id") or hasattr(parameter, "full_tensor") for parameter in model.parameters())


def release_gathered(model: nn.Module) -> None:
    """Releases the weights that ZeRO stage 3 has gathered ahead for a backward that does not come, after an evaluation.

    Without this, DeepSpeed cannot gather them for a save.
    """
    if hasattr(model, "empty_partition_cache"):
        model.empty_partition_cache()


def shard_over_processes(model: nn.Module, device: torch.device) -> nn.Module:
    """Shards a frozen model over all processes with FSDP2: each holds 1/n of it, plus one whole layer while that runs.

    The head is a group of its own, which the loss from hidden states gathers once per batch. Layers are moved to the device
    one after the other, so the whole model never is on it.

    Args:
        model: A model in evaluation mode, not on the device yet.
        device: The training device.

    Returns:
        The same model. Every process must call it equally often.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    model.requires_grad_(False)
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    embeddings, head = whole.get_input_embeddings(), whole.get_output_embeddings()
    tied = head is None or head.weight is embeddings.weight  # both stay in the group of the whole model
    groups = [*_layers(whole), *([] if tied else [embeddings, head]), model]
    for module in groups:
        module.to(device)
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return model


def fill_from_main(model: nn.Module, device: torch.device) -> None:
    """Copies all weights from the main process, for FSDP's loading that leaves them empty in the other processes."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for tensor in tensors:
        sent = tensor.detach().to(device)
        distributed.broadcast(sent, src=0)
        with torch.no_grad():
            tensor.copy_(sent)


def _layers(model: nn.Module) -> list[nn.Module]:
    """Returns the modules that transformers never splits: the layers of the model."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    inner = {id(part) for layer in layers for part in layer.modules() if part is not layer}
    return [layer for layer in layers if id(layer) not in inner]
