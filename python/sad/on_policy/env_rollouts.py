"""`EnvRollouts`: the student plays tasks of an environment."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import nn

from sad.agents.episode import RolloutConfig
from sad.envs.protocol import Env, Task
from sad.errors import InputError
from sad.on_policy.engines import Engine, Play
from sad.on_policy.examples import played_tokens
from sad.on_policy.rollouts import Rollout, Rollouts
from sad.on_policy.schedule import Schedule
from sad.training.config import SADConfig
from sad.trajectories.formats import ChatFormat
from sad.trajectories.spans import SpanKind
from sad.trajectories.trajectory import Trajectory


class _Job(NamedTuple):
    """An episode to play: its id, its task, its seed, and the teacher's turns that come first."""

    id: str
    task: Task
    seed: int
    replayed: list[str]


class EnvRollouts(Rollouts):
    """The student plays tasks of an environment, in the format `sad`, as `sad.rollout` does.

    Args:
        env: The environment. Every episode uses a shallow copy.
        tokenizer: Fast tokenizer of the student.
        tasks: The tasks, all of which are played before any is played again. Default: all of the environment.
        env_name: Name of the environment in the trajectories.
        demonstrations: Trajectories of the teacher in this environment, for `rollout_prefix`. Their ids are those of the
            tasks, with or without `#k` for sample k, as `sad collect` writes them.
        temperature: Sampling temperature, > 0: greedy episodes of a task are all the same.
        max_steps: Maximum number of actions per episode.
        max_turn_tokens: Maximum number of tokens per turn.
        max_repeats: An episode ends when the same action gets the same observation this many times in a row.
        batch_size: Number of parallel episodes per process.
        prompt: Text before the first observation. The teacher reads it too.
        chat: Whether the student reads a conversation in its chat template.
        engine: What runs the student; default: its model in this process.

    Raises:
        InputError: A number is out of range, or there is no task.
    """

    def __init__(
        self,
        env: Env,
        tokenizer: Any,
        *,
        tasks: Sequence[Task] | None = None,
        env_name: str | None = None,
        demonstrations: Iterable[Trajectory] = (),
        temperature: float = 1.0,
        max_steps: int = 50,
        max_turn_tokens: int = 128,
        max_repeats: int = 5,
        batch_size: int = 64,
        prompt: str = "",
        chat: bool = False,
        engine: Engine | None = None,
    ) -> None:
        super().__init__(engine)
        self._env, self._tokenizer, self._env_name = env, tokenizer, env_name
        self._tasks = list(env.tasks if tasks is None else tasks)
        if not self._tasks:
            raise InputError("tasks", "at least one task", "none", "Choose another split, or leave tasks out.")
        if not temperature > 0:
            remedy = "Use 1.0: the student's own distribution."
            raise InputError("temperature", "a number > 0", str(temperature), remedy)
        if batch_size < 1:
            raise InputError("batch_size", "at least 1", str(batch_size), "Use a larger number.")
        self._config = RolloutConfig(max_steps, max_turn_tokens, max_repeats, "free", temperature, prompt)
        self._batch_size, self._chat = batch_size, chat
        self._turns: dict[str, list[str]] = {}
        for trajectory in sorted(demonstrations, key=lambda one: one.success is not True):  # solved ones first
            if turns := turns_of(trajectory):
                self._turns.setdefault(trajectory.id.partition("#")[0], turns)

    def check(self, args: SADConfig) -> None:
        """Checks that the teacher's turns are known if they have to be replayed.

        Raises:
            InputError: They are not.
        """
        if args.rollout_prefix and not self._demonstrated():
            remedy = "Pass trajectories that `sad collect` has written for these tasks, or set rollout_prefix to 0."
            got = "none in the format sad whose id is that of a task"
            raise InputError("rollout_prefix", "trajectories of the teacher on the tasks", got, remedy)

    def play(self, student: nn.Module, rollout: Rollout) -> list[Trajectory]:
        """Plays the episodes of this process. See `Rollouts.play`."""
        jobs = rollout.own(self._jobs(rollout.step, rollout, rollout.schedule))
        config = dataclasses.replace(self._config, max_steps=rollout.schedule.turns(rollout.step, self._config.max_steps))
        play = Play(self._tokenizer, config, self._batch_size, rollout.max_length, self._chat)
        tasks, seeds, replayed = ([getattr(job, name) for job in jobs] for name in ("task", "seed", "replayed"))
        episodes = self.engine.episodes(student, self._env, tasks, seeds, replayed, play)
        trajectories = []
        for job, episode in zip(jobs, episodes):
            trajectory = episode.to_trajectory(self._env_name, seed=job.seed, temperature=config.temperature)
            trajectory.id, trajectory.kept_tokens = job.id, played_tokens(episode, self._tokenizer)
            trajectories.append(trajectory)
        return trajectories

    def _jobs(self, step: int, rollout: Rollout, schedule: Schedule) -> list[_Job]:
        """Returns the episodes of a rollout, of all processes."""
        share = schedule.prefix_share(step)
        pool = self._demonstrated() if share > 0 else self._tasks
        samples: Counter[str] = Counter()
        jobs = []
        for index in schedule.tasks(step, rollout.episodes, len(pool)):
            task = pool[index]
            sample = samples[task.id]
            samples[task.id] += 1
            turns = self._turns.get(task.id, [])
            replayed = turns[: min(math.floor(share * len(turns) + 1e-9), len(turns) - 1)] if share > 0 else []
            name = f"{task.id}@{step}" + (f"#{sample}" if sample else "")
            jobs.append(_Job(name, task, rollout.seed(sample), replayed))
        return jobs

    def _demonstrated(self) -> list[Task]:
        return [task for task in self._tasks if task.id in self._turns]


def turns_of(trajectory: Trajectory) -> list[str]:
    """Returns the agent's turns of a trajectory in the format `sad`, each with its action; [] for another format."""
    format = trajectory.resolve_format()
    if trajectory.text is None or isinstance(format, ChatFormat) or format.name != "sad":
        return []
    turns, begin = [], None
    for span in trajectory.segmented().spans:
        begin = span.start if begin is None else begin
        if span.kind is SpanKind.ACT:
            turns.append(trajectory.text[begin : span.end])
            begin = None
    return turns
