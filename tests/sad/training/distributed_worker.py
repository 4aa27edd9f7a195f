"""Trains in the processes it is started in, and writes weights and logs: `python -m ... FOLDER`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from transformers import TrainerCallback

from sad.errors import LostProcessError
from sad.interrupts import Interrupted
from sad.training.config import SADConfig
from sad.training.stopping import SignalStop
from sad.training.trainer import SADTrainer
from tests.sad.teacher_cache import tiny_cache
from tests.sad.training import tiny

STOP = 4  # in the second epoch; an epoch has three steps


class Stop(TrainerCallback):
    """Stops a run that is resumed later."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= STOP


class Leave(TrainerCallback):
    """Ends process 1 in the middle of a training, and notes the time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_step_end(self, args, state, control, **kwargs):
        if args.process_index == 1 and state.global_step == 2:
            (self._folder / "left").write_text(str(time.time()))
            os._exit(0)


def lose_process(folder: Path) -> None:
    """Writes the message of process 0 after process 1 has left, and the seconds in between."""
    made = trainer(folder / "lost", batch=2, save_strategy="no")
    made.add_callback(Leave(folder))
    try:
        made.train()
    except LostProcessError as error:
        seconds = time.time() - float((folder / "left").read_text())
        (folder / "lost.json").write_text(json.dumps({"message": str(error), "seconds": seconds}))
    os._exit(0)  # the process group is broken


def train_to_stop(folder: Path, batch: int) -> None:
    """Trains until `STOP`, so that another number of processes can resume."""
    made = trainer(folder, batch)
    made.add_callback(Stop())
    made.train()


def trainer(folder: Path, batch: int, **fields) -> SADTrainer:
    """Returns a trainer with SGD, which keeps weights as close as gradients, and a curriculum that grows to the end."""
    config = SADConfig(
        output_dir=str(folder),
        **tiny.CONFIG
        | {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": 2,
            "max_steps": 7,
            "learning_rate": 0.5,
            "optim": "sgd",
            "curriculum_end": 1.0,
            "save_strategy": "steps",
            "save_steps": 2,
            "save_total_limit": None,
            "per_device_eval_batch_size": batch,
            **fields,
        },
    )
    teacher, student = tiny.model(seed=1, sharpness=30), tiny.model(seed=2)
    # 24 training examples are whole batches on two processes. 7 evaluation examples need a filled last batch.
    return SADTrainer(student, teacher, config, train_dataset=tiny.examples(24), eval_dataset=tiny.examples(7, seed=9))


def weights(made: SADTrainer) -> torch.Tensor:
    return torch.cat([x.detach().flatten() for x in made.accelerator.unwrap_model(made.model).parameters()])


def record(made: SADTrainer) -> dict:
    """Returns all results that must not depend on the number of processes."""
    names = ("loss", "loss_reason", "loss_act", "tokens_reason", "tokens_act", "grad_norm")
    logs = [{name: log[name] for name in names} for log in made.state.log_history if "loss" in log]
    # Both throughputs have the same seconds, so their quotient is exact.
    speeds = [
        (log["supervised_tokens_per_second"], log["tokens_per_second"]) for log in made.state.log_history if "loss" in log
    ]
    shares = [supervised / all_tokens for supervised, all_tokens in speeds]
    evaluated = {name: x for name, x in made.evaluate().items() if "loss" in name or "tokens" in name}
    return {"weights": weights(made), "logs": logs, "eval": evaluated, "shares": shares}


def contrastive(folder: Path, accumulate: int) -> dict:
    """Trains with the contrastive term on batches of two. Two processes equal one that accumulates two batches."""
    fields = {"contrastive_weight": 0.3, "gradient_accumulation_steps": accumulate, "max_steps": 3, "save_strategy": "no"}
    made = trainer(folder, batch=2, **fields)
    made.train()
    names = ("loss", "contrastive_loss", "grad_norm", "tokens_act")
    logs = [{name: log[name] for name in names} for log in made.state.log_history if "loss" in log]
    return {"weights": weights(made), "logs": logs}


class SignalAtStep(TrainerCallback):
    """Acts as if this process received a signal during step 2."""

    def __init__(self, stop: SignalStop) -> None:
        self.stop = stop

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.stop.request(15)


def stopped(folder: Path) -> list[str]:
    """One process receives a signal. Returns the checkpoints; both processes must leave the loop after the same step."""
    made = trainer(folder, batch=2, save_strategy="no")
    stop = SignalStop(made.finite_guard, made.is_world_process_zero())
    if not made.is_world_process_zero():
        made.callback_handler.callbacks.insert(0, SignalAtStep(stop))  # before the guard reads the request
    made.add_callback(stop)
    made.train()
    try:
        stop.raise_if_stopped()
    except Interrupted as signal:
        assert signal.exit_code == 143
        return sorted(path.name for path in folder.glob("checkpoint-*"))
    return []


def without_labels(folder: Path) -> dict:
    """Trains on data of which every second example has no supervised token, so that a whole batch has none."""
    made = trainer(folder, batch=1, gradient_accumulation_steps=1, max_steps=6, save_strategy="no", curriculum=False)
    examples = [dict(example) for example in made.train_dataset]
    for example in examples[::2]:
        example["span_ids"] = [0] * len(example["span_ids"])
    made.train_dataset = examples
    made.train()
    return {"weights": weights(made), "loss": [log["loss"] for log in made.state.log_history if "loss" in log]}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    whole = trainer(folder / "whole", batch=2)
    whole.train()
    result = {"whole": record(whole)}
    train_to_stop(folder / "cut", batch=2)
    second = trainer(folder / "cut", batch=2)
    second.train(resume_from_checkpoint=True)
    result["resumed"] = {"weights": weights(second)}
    moved = trainer(folder / "moved", batch=2)  # one process has trained its first steps
    moved.train(resume_from_checkpoint=True)
    result["moved"] = {"weights": weights(moved)}
    result["cached"] = tiny_cache.make_and_train(folder / "cached", batch=2)
    result["contrastive"] = contrastive(folder / "contrastive", accumulate=1)
    result["stopped"] = stopped(folder / "stopped")
    result["without labels"] = without_labels(folder / "without labels")
    if whole.is_world_process_zero():
        measured = json.loads((folder / "whole" / "curriculum.json").read_text())
        torch.save(
            {**result, "curriculum": measured, "processes": whole.accelerator.num_processes, "folder": str(folder)},
            folder / "result.pt",
        )
    lose_process(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
