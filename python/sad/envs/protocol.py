"""The interface of all environments: `Env`, `Task` and `Step`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Task(NamedTuple):
    """One task of an environment.

    Attributes:
        id: Identifier, unique within the environment and the same in every run.
        type: Task type. Results are also reported per type.
        goal: The instruction, as the agent reads it.
    """

    id: str
    type: str
    goal: str


class Step(NamedTuple):
    """The result of one action.

    Attributes:
        observation: The text that the agent reads. It can have several lines, but no blank line.
        reward: The reward of this action.
        done: Whether the episode is over.
        info: A dict with these keys:

            * `won` (bool, required): whether the task is solved, judged by the state of the environment.
            * `admissible_commands` (list of str, required): the actions that have an effect in the new state. Actions with
              free text, such as `search[...]`, can be absent.
            * `valid` (bool, optional): whether the environment understood this action. Without this key, an action
              counts as valid if it was in the previous `admissible_commands`. An environment that accepts free text, or
              several commands for one action, must set it.
            * `metrics` (dict of str to float, optional): metrics of the episode so far, such as a score. The metrics of
              the last step are kept and averaged over episodes.
    """

    observation: str
    reward: float
    done: bool
    info: dict[str, Any]


@runtime_checkable
class Env(Protocol):
    """A text environment that runs one episode at a time.

    A shallow copy (`copy.copy(env)`) must run its own episode, so that many episodes can run side by side. `reset` must
    therefore create new state and must not change anything that the copies share.

    An environment can have a scripted expert as the attribute `expert`: a function
    `(env, task, *, max_steps) -> Trajectory` (a `staticmethod` in a class). The expert should see only what an agent sees.
    If it knows more, its documentation must say so.
    """

    @property
    def tasks(self) -> Sequence[Task]:
        """All tasks, always in the same order."""
        ...

    @property
    def admissible_commands(self) -> list[str]:
        """The actions that have an effect in the current state, as in `info["admissible_commands"]` of the last step."""
        ...

    def reset(self, task: Task) -> str:
        """Starts an episode of `task` and returns the first observation, which includes the goal."""
        ...

    def step(self, action: str) -> Step:
        """Runs one action. An action that the environment does not understand gets an answer and raises no error."""
        ...
