"""Trains with tensor parallelism in the processes it is started in: `python -m ... FOLDER` with models in FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate.parallelism_config import ParallelismConfig
from transformers import AutoModelForCausalLM

from sad.training.config import SADConfig
from sad.training.difficulty import read_rows, teacher_entropy_sums
from sad.training.trainer import SADTrainer
from tests.sad.training import tiny


def save_models(folder: Path) -> None:
    """Saves a teacher and a student with a tensor-parallel plan of transformers."""
    for name, seed, sharpness in (("teacher", 1, 30.0), ("student", 2, 1.0)):
        tiny.model("llama", seed=seed, sharpness=sharpness).save_pretrained(folder / name)


def trainer(models: Path, out: Path, plan: dict[str, str] | None = None, **fields) -> SADTrainer:
    """A trainer of the saved models, whole or, with a plan, sharded over the processes."""
    options = {}
    if plan is not None:
        from transformers.distributed import DistributedConfig

        options["distributed_config"] = DistributedConfig(tp_size=torch.distributed.get_world_size(), tp_plan=plan)
    student, teacher = (AutoModelForCausalLM.from_pretrained(models / name, **options) for name in ("student", "teacher"))
    steps = {"optim": "sgd", "learning_rate": 0.5, "warmup_steps": 0, "max_steps": 3, "lambda_act": 2.0}
    config = SADConfig(output_dir=str(out), **tiny.CONFIG | steps | fields)
    return SADTrainer(student, teacher, config, train_dataset=tiny.examples(12), eval_dataset=tiny.examples(4, seed=9))


def record(made: SADTrainer) -> dict:
    """Everything that should not depend on the number of processes."""
    data = made.train_dataset
    entropy = teacher_entropy_sums(data, read_rows(data, 96), made.args, made.accelerator, made.teacher_model)
    batch = {"input_ids": torch.tensor([data[0]["input_ids"]])}
    columns = made.teacher_logits(batch).shape[-1]
    made.train()
    names = ("loss", "loss_reason", "loss_act", "tokens_reason", "tokens_act", "agreement_act", "student_entropy_act")
    logs = [{name: log[name] for name in names} for log in made.state.log_history if "loss" in log]
    evaluated = {name: x for name, x in made.evaluate().items() if "loss" in name or "tokens" in name}
    weights = [x.full_tensor() if hasattr(x, "full_tensor") else x for x in made.model.parameters()]
    return {
        "logs": logs,
        "eval": {name: x for name, x in evaluated.items() if "per_second" not in name},
        "weights": torch.cat([x.detach().flatten() for x in weights]),
        "entropy": entropy.tolist(),
        "columns": columns,
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ParallelismConfig._validate_accelerator = lambda *args: None  # accelerate allows tensor parallelism on GPUs only
    torch.distributed.init_process_group("gloo")
    whole = AutoModelForCausalLM.from_pretrained(folder / "student").tp_plan
    plans = {"whole logits": whole, "sharded logits": whole | {"lm_head": "colwise"}, "hidden": whole}
    result = {}
    for name, plan in plans.items():
        loss_from = "hidden" if name == "hidden" else "logits"
        result[name] = record(trainer(folder, folder / name, plan, loss_from=loss_from))
    if torch.distributed.get_rank() == 0:
        torch.save(result, folder / "result.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
