"""`Rollouts`: mixes the student's own trajectories into the steps of a training. Subclasses say how the student plays."""

from __future__ import annotations

import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging

from sad.on_policy.buffer import ReplayBuffer
from sad.on_policy.engines import Engine, LocalEngine
from sad.on_policy.examples import example_of
from sad.on_policy.metrics import RolloutMeter
from sad.on_policy.schedule import Schedule
from sad.training.config import SADConfig
from sad.training.span_loss_trainer import ON_POLICY
from sad.training.trainer import SADTrainer
from sad.trajectories.trajectory import Trajectory

logger = logging.get_logger(__name__)
FOLDER = "rollouts"  # in the output folder of the training


@dataclass(frozen=True)
class Rollout:
    """What one process has to play.

    Args:
        step: The optimizer step of the rollout; its seeds follow from it.
        rank: Number of the process.
        processes: Number of processes that share the rollout.
        schedule: The schedule of the run.
        max_length: Maximum number of tokens per trajectory.
    """

    step: int
    rank: int
    processes: int
    schedule: Schedule
    max_length: int

    def seed(self, sample: int = 0) -> int:
        """Returns the seed of an episode of a task: the `sample`-th of this task in the rollout.

        It follows from the run's seed and the step, so a resumed run plays the same. The player adds the task.
        """
        return zlib.crc32(f"{self.schedule.seed}/{self.step}/{sample}".encode())

    @property
    def episodes(self) -> int:
        """Number of episodes, over all processes."""
        return self.schedule.args.rollout_episodes

    def own(self, jobs: Sequence[Any]) -> list[Any]:
        """Returns the part of the jobs of all processes that this one has to play."""
        return list(jobs[self.rank :: self.processes])


class Rollouts(ABC):
    """The student's own trajectories in a training of `sad.SADTrainer`.

    At the first of every `rollout_interval` steps, all processes play their part of `rollout_episodes` episodes with the
    current student. The trajectories are shared, and written to `rollouts/` in the output folder. `Schedule` decides which
    batches of a step are replaced by batches of these trajectories. The trainer does the rest: the teacher scores exactly
    the tokens that the student wrote, in one forward pass per batch.

    Args:
        engine: What runs the student; default: its model in this process.
    """

    def __init__(self, engine: Engine | None = None) -> None:
        self.engine: Engine = LocalEngine() if engine is None else engine
        self._rollouts: dict[int, list[Trajectory]] = {}
        self._examples: dict[int, list[dict[str, list[int]]]] = {}
        self._trainer: SADTrainer | None = None

    @abstractmethod
    def play(self, student: nn.Module, rollout: Rollout) -> list[Trajectory]:
        """Returns the trajectories of this process, with `kept_tokens` and an id that is unique in the rollout.

        Args:
            student: The student, without the wrapper of the training.
            rollout: What to play.
        """

    # --- what the trainer calls ---

    def check(self, args: SADConfig) -> None:  # noqa: B027
        """Checks that the source fits the configuration, before the trainer touches the output folder.

        Raises:
            InputError: It does not.
        """

    def attach(self, trainer: SADTrainer) -> None:
        """Connects the source with its trainer. Arguments and errors as in `OnPolicySource`."""
        self._trainer, self._accelerator = trainer, trainer.accelerator
        args = trainer.args
        self.engine.check(trainer)
        self._seed = args.seed if args.data_seed is None else args.data_seed
        self._buffer = ReplayBuffer(Path(args.output_dir) / FOLDER)
        self._meter = RolloutMeter()
        parallel = trainer.get_tp_size()  # tensor-parallel processes share their batches, so they play the same
        self._rank, self._processes = (
            number // parallel for number in (self._accelerator.process_index, self._accelerator.num_processes)
        )
        trainer.add_callback(_Start(self))

    def begin(self) -> None:
        """Loads what a resumed run needs, and deletes what a new run must not find. Every process calls it."""
        step = self._trainer.state.global_step
        found: dict[int, list[Trajectory]] = {}
        if self._accelerator.is_main_process:
            self._buffer.forget_after(step if step else -1)
            window = self._window(step)
            found = {number: self._buffer.read(number) for number in self._buffer.steps() if number in window}
        self._rollouts = broadcast_object_list([found])[0]
        self._examples = {}

    def mixed(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Returns the batches of a step, some of them the student's own. Arguments as in `OnPolicySource`."""
        step, schedule = self._trainer.state.global_step, self._schedule()
        rollout = schedule.rollout_of(step)
        if rollout not in self._rollouts and schedule.plays(rollout):
            self._play(rollout, schedule)
        examples = self._drawable(step)
        if not examples:
            return batches
        count = len(batches) * self._processes
        size = self._trainer.args.train_batch_size
        nominal = self._trainer.args.gradient_accumulation_steps * self._processes * size
        first = (step - rollout) * nominal
        mixed = list(batches)
        for place, number in enumerate(schedule.own_batches(step, count)):
            if number % self._processes == self._rank:  # batch j of process r is the (j P + r)-th of the step
                chosen = schedule.draws(step, first + place * size, size, len(examples))
                batch = self._trainer.data_collator([examples[index] for index in chosen])
                mixed[number // self._processes] = {**batch, ON_POLICY: True}
        return mixed

    def logs(self) -> dict[str, float]:
        """Returns the share of own batches now, and the results of the rollouts since the last log."""
        share = self._schedule().share(min(self._trainer.state.global_step, max(self._trainer.state.max_steps - 1, 0)))
        return {"on_policy_share": share, **self._meter.take()}

    # --- inside ---

    def _schedule(self) -> Schedule:
        return Schedule(self._trainer.args, self._trainer.state.max_steps, self._seed)

    def _window(self, step: int) -> range:
        """Returns the steps whose rollouts a step draws from."""
        args = self._trainer.args
        last = step - step % args.rollout_interval
        return range(last - (args.rollout_window - 1) * args.rollout_interval, last + 1)

    def _play(self, step: int, schedule: Schedule) -> None:
        """Plays a rollout on all processes, shares it, and writes it to the disk."""
        rollout = Rollout(step, self._rank, self._processes, schedule, self._trainer.args.max_length)
        student = self._accelerator.unwrap_model(self._trainer.model)
        with self._trainer._throughput.paused(), self._accelerator.autocast():
            began = time.perf_counter()
            self.engine.sync(student, step, self._accelerator)
            own = self.play(student, rollout)
            seconds = time.perf_counter() - began
            parts = gather_object([(own, seconds)])
        played = {item.id: item for part, _ in parts for item in part}
        trajectories = [played[name] for name in sorted(played)]
        if self._accelerator.is_main_process:
            self._buffer.write(step, trajectories)
        self._rollouts[step] = trajectories
        if not any(example_of(trajectory.kept_tokens) for trajectory in trajectories):
            logger.warning_once(
                "In a rollout the student wrote no token: all prompts fill max_length %d, or the teacher's turns end the "
                "episodes. The teacher's trajectories are trained instead.",
                rollout.max_length,
            )
        self._meter.add(trajectories, max(seconds for _, seconds in parts))

    def _drawable(self, step: int) -> list[dict[str, list[int]]]:
        """Returns the examples of the rollouts in the window of a step, and forgets older ones."""
        window = self._window(step)
        self._rollouts = {number: found for number, found in self._rollouts.items() if number in window}
        for number, trajectories in self._rollouts.items():
            if number not in self._examples:
                made = (example_of(trajectory.kept_tokens) for trajectory in trajectories)
                self._examples[number] = [example for example in made if example is not None]
        self._examples = {number: self._examples[number] for number in sorted(self._rollouts)}
        return [example for found in self._examples.values() for example in found]


class _Start(TrainerCallback):
    """Tells a source that the training begins, at the step of its checkpoint."""

    def __init__(self, rollouts: Rollouts) -> None:
        self._rollouts = rollouts

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._rollouts.begin()
