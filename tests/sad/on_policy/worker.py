"""Trains on policy in the processes it is started in: `python -m ... FOLDER` or `python -m ... kill FOLDER`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from sad.on_policy.env_rollouts import EnvRollouts
from sad.training.trainer import SADTrainer
from tests.sad.agents.toy import Doors
from tests.sad.on_policy import doors


class _Kill(TrainerCallback):
    """Kills this process in its sixth step, after the rollout of step 4 was played and the checkpoint of step 4 saved."""

    def on_substep_end(self, args, state, control, **kwargs) -> None:
        self.on_pre_optimizer_step(args, state, control)

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)


class _Counted(EnvRollouts):
    """Counts the episodes that this process has played."""

    played = 0

    def play(self, *args):
        found = super().play(*args)
        self.played += len(found)
        return found


def kill(folder: Path) -> None:
    """Starts the run of the test about a killed run, and kills it."""
    source = EnvRollouts(Doors(), doors.TOKENIZER, max_steps=3, max_turn_tokens=10)
    made = doors.trainer(folder, source, save_strategy="steps", save_steps=2, rollout_window=2)
    made.add_callback(_Kill())
    made.train()


def trained(folder: Path, accumulated: int) -> SADTrainer:
    """Returns a trainer after four steps, half of whose batches are the student's own."""
    source = _Counted(Doors(), doors.TOKENIZER, max_steps=3, max_turn_tokens=10)
    fields = {"on_policy_start": 0.5, "on_policy_share": 0.5, "gradient_accumulation_steps": accumulated, "max_steps": 4}
    train = doors.examples() * 8
    made = doors.trainer(folder, source, train=train, curriculum=False, **fields)
    made.train()
    return made


def main(folder: Path) -> None:
    made = trained(folder, accumulated=2)
    played = made.accelerator.gather(torch.tensor([made.rollouts.played])).tolist()
    if made.is_world_process_zero():
        torch.save({"weights": doors.weights(made), "played": [count // 2 for count in played]}, folder / "result.pt")


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
