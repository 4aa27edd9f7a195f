"""Trains with sharded students and teachers in the processes it is started in: `python -m ... FOLDER STRATEGY`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from sad.model_parts import gathered_parameters
from sad.teacher_cache.reader import TeacherCache
from sad.training.config import SADConfig
from sad.training.trainer import SADTrainer
from tests.sad.teacher_cache import tiny_cache
from tests.sad.training import tiny

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "distributed"
LOSSES = ("hidden", "cache", "logits")


def strategy_fields(strategy: str) -> dict[str, Any]:
    """Returns the fields of `SADConfig` of a strategy for CPUs. Sets the variables of `accelerate launch` for DeepSpeed."""
    if strategy.startswith("zero"):
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(EXAMPLES / f"{strategy}.json")
        return {"use_cpu": False, "ddp_backend": "gloo"}
    if strategy == "fsdp2":
        return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}
    return {}


def model(name: str, models: Path | None) -> PreTrainedModel:
    """Returns the teacher or the student, from a folder of saved models if there is one. ZeRO stage 3 shards it there."""
    if models is not None:
        return AutoModelForCausalLM.from_pretrained(models / name)
    return tiny.model("llama", seed=1, sharpness=30) if name == "teacher" else tiny.model("llama", seed=2)


def trainer(folder: Path, loss: str, batch: int, models: Path | None = None, **fields: Any) -> SADTrainer:
    """Returns a trainer with SGD, which keeps weights as close as gradients."""
    examples, other = tiny.examples(12), tiny.examples(5, seed=9)
    sizes = {"per_device_train_batch_size": batch, "per_device_eval_batch_size": batch, "gradient_accumulation_steps": 2}
    rate = {"optim": "sgd", "learning_rate": 0.5, "warmup_steps": 0, "max_steps": 3}
    loss_from = "logits" if loss == "logits" else "hidden"
    config = SADConfig(output_dir=str(folder), **tiny.CONFIG | sizes | rate | {"loss_from": loss_from} | fields)
    teacher, student, cache = model("teacher", models), model("student", models), None
    if loss == "cache":
        tiny_cache.write(folder.parent / "cache", examples + other, model("teacher", None))  # each process computes a part
        cache, teacher = TeacherCache(folder.parent / "cache"), None
    return SADTrainer(student, teacher, config, examples, other, teacher_cache=cache)


def weights(made: SADTrainer) -> torch.Tensor:
    """Returns all weights of the student, gathered."""
    parameters = list(made.accelerator.unwrap_model(made.model).parameters())
    with gathered_parameters(parameters):
        whole = [x.full_tensor() if hasattr(x, "full_tensor") else x for x in parameters]
        return torch.cat([x.detach().flatten() for x in whole]).clone()


def record(made: SADTrainer) -> dict[str, Any]:
    """Trains, and returns all results that must not depend on the number of processes."""
    made.train()
    names = ("loss", "loss_reason", "loss_act", "tokens_reason", "tokens_act", "grad_norm")
    logs = [{name: log[name] for name in names} for log in made.state.log_history if "loss" in log]
    evaluated = {name: x for name, x in made.evaluate().items() if "loss" in name or "tokens_" in name}
    return {
        "weights": weights(made),
        "logs": logs,
        "eval": {name: x for name, x in evaluated.items() if "per_second" not in name},
        "type": str(made.accelerator.distributed_type),
    }


def adapters(folder: Path, batch: int, models: Path | None = None, **fields: Any) -> SADTrainer:
    """Returns a trainer of LoRA adapters in bfloat16 with AdamW, which saves a checkpoint after two of four steps."""
    from peft import LoraConfig

    sizes = {"per_device_train_batch_size": batch, "learning_rate": 1e-2, "warmup_steps": 0, "bf16": True}
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "loss_from": "hidden"}
    config = SADConfig(output_dir=str(folder), **tiny.CONFIG | sizes | saving | fields)
    torch.manual_seed(5)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return SADTrainer(model("student", models), model("teacher", models), config, tiny.examples(12), peft_config=lora)


def record_resumed(folder: Path, batch: int, models: Path | None = None, **fields: Any) -> dict[str, Any]:
    """Trains adapters, and again from the checkpoint after two steps. Returns losses and weights of both."""
    result = {}
    for name, checkpoint in (("whole", None), ("resumed", folder / "checkpoint-2")):
        made = adapters(folder, batch, models, **fields)
        start = weights(made)
        made.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        losses = [log["loss"] for log in made.state.log_history if "loss" in log]
        result[name] = {"losses": losses, "weights": weights(made), "start": start}
    made.save_model(str(folder / "model"))
    return result


def one_process(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the results of one process for each loss, with batches twice as large."""
    return {loss: record(trainer(folder / loss, loss, batch=4)) for loss in LOSSES}


def main(folder: Path, strategy: str) -> None:
    torch.set_num_threads(1)
    fields = strategy_fields(strategy)
    models = folder / f"models-{os.environ['RANK']}"
    for name in ("teacher", "student"):  # before the configuration turns ZeRO on
        model(name, None).save_pretrained(models / name)
    result = {}
    for loss in LOSSES:
        made = trainer(folder / loss, loss, batch=2, models=models, teacher_sharding=loss != "cache", **fields)
        result[loss] = record(made)
    bf16 = not strategy.startswith("zero")  # transformers refuses bfloat16 on a CPU without use_cpu
    result["adapters"] = record_resumed(folder / "adapters", 2, models, teacher_sharding=True, bf16=bf16, **fields)
    if torch.distributed.get_rank() == 0:
        torch.save(result, folder / "result.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
