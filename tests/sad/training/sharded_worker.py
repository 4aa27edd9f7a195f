"""Trains with a sharded student, and a sharded teacher, in the processes it is started in: `python -m ... FOLDER STRATEGY`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from sad.model_parts import gathered_parameters
from sad.teacher_cache.reader import TeacherCache
from sad.training.config import SADConfig
from sad.training.trainer import SADTrainer
from tests.sad.teacher_cache import tiny_cache
from tests.sad.training import tiny

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "distributed"
LOSSES = ("hidden", "cache", "logits")


def strategy_fields(strategy: str) -> dict[str, Any]:
    """Returns the fields of `SADConfig` of a strategy for CPUs."""
    if strategy.startswith("zero"):
        config = json.loads((EXAMPLES / f"{strategy}.json").read_text())
        return {"deepspeed": config, "use_cpu": False}
    if strategy == "fsdp2":
        return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}
    return {}


def trainer(folder: Path, loss: str, batch: int, **fields: Any) -> SADTrainer:
    """Returns a trainer with SGD, which keeps weights as close as gradients."""
    examples, other = tiny.examples(12), tiny.examples(5, seed=9)
    sizes = {"per_device_train_batch_size": batch, "per_device_eval_batch_size": batch, "gradient_accumulation_steps": 2}
    rate = {"optim": "sgd", "learning_rate": 0.5, "warmup_steps": 0, "max_steps": 3}
    loss_from = "logits" if loss == "logits" else "hidden"
    config = SADConfig(output_dir=str(folder), **tiny.CONFIG | sizes | rate | {"loss_from": loss_from} | fields)
    teacher, cache = tiny.model("llama", seed=1, sharpness=30), None
    if loss == "cache":
        tiny_cache.write(folder.parent / "cache", examples + other, teacher)  # each process computes a part
        cache, teacher = TeacherCache(folder.parent / "cache"), None
    return SADTrainer(tiny.model("llama", seed=2), teacher, config, examples, other, teacher_cache=cache)


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


def main(folder: Path, strategy: str) -> None:
    torch.set_num_threads(1)
    fields = strategy_fields(strategy)
    result = {}
    for loss in LOSSES:
        for sharding in (False, True) if loss != "cache" else (False,):
            name = loss + (", sharded teacher" if sharding else "")
            made = trainer(folder / strategy / name, loss, batch=2, teacher_sharding=sharding, **fields)
            result[name] = record(made)
            if made.is_world_process_zero():
                torch.save(result, folder / f"{strategy}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
