"""Trains with tensor parallelism in the processes it is started in: `python -m ... FOLDER` with models in FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate.parallelism_config import ParallelismConfig
from transformers import AutoModelForCausalLM

from sad.errors import InputError
from sad.training.config import SADConfig
from sad.training.difficulty import read_rows, teacher_entropy_sums
from sad.training.trainer import SADTrainer
from tests.sad.training import tiny


def save_models(folder: Path) -> None:
    """Saves a teacher and a student of a family with a tensor-parallel plan."""
    for name, seed, sharpness in (("teacher", 1, 30.0), ("student", 2, 1.0)):
        tiny.model("llama", seed=seed, sharpness=sharpness).save_pretrained(folder / name)


def load(folder: Path, plan: dict[str, str] | None):
    """Returns a saved model, which a plan shards over the processes."""
    if plan is None:
        return AutoModelForCausalLM.from_pretrained(folder)
    from transformers.distributed import DistributedConfig

    config = DistributedConfig(tp_size=torch.distributed.get_world_size(), tp_plan=plan)
    return AutoModelForCausalLM.from_pretrained(folder, distributed_config=config)


def trainer(models: Path, out: Path, plan=None, teacher_plan=None, **fields) -> SADTrainer:
    """Returns a trainer of the saved models. The teacher has the student's plan by default."""
    student, teacher = load(models / "student", plan), load(models / "teacher", teacher_plan or plan)
    steps = {"optim": "sgd", "learning_rate": 0.5, "warmup_steps": 0, "max_steps": 3, "lambda_act": 2.0}
    config = SADConfig(output_dir=str(out), **tiny.CONFIG | steps | fields)
    return SADTrainer(student, teacher, config, train_dataset=tiny.examples(12), eval_dataset=tiny.examples(4, seed=9))


def record(made: SADTrainer) -> dict:
    """Returns all results that must not depend on the number of processes."""
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


def refused(folder: Path, plan: dict[str, str]) -> list[str]:
    """Returns the messages for combinations that sharded logits do not allow."""
    sharded, messages = plan | {"lm_head": "colwise"}, []
    for fields in ({"plan": sharded, "ce_weight": 0.5}, {"plan": sharded, "teacher_plan": plan}):
        made = trainer(folder, folder / "refused", loss_from="logits", curriculum=False, **fields)
        try:
            made.train()
        except InputError as error:
            messages.append(str(error))
    return messages


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ParallelismConfig._validate_accelerator = lambda *args: None  # accelerate allows tensor parallelism only on GPUs
    torch.distributed.init_process_group("gloo")
    whole = AutoModelForCausalLM.from_pretrained(folder / "student").tp_plan
    plans = {"whole logits": whole, "sharded logits": whole | {"lm_head": "colwise"}, "hidden": whole}
    result = {"refused": refused(folder, whole)}
    for name, plan in plans.items():
        loss_from = "hidden" if name == "hidden" else "logits"
        result[name] = record(trainer(folder, folder / name, plan, loss_from=loss_from))
    if torch.distributed.get_rank() == 0:
        torch.save(result, folder / "result.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
