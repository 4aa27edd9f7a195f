"""What a world is to everything that plays in it: tasks, observations in, actions out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable


class Task(NamedTuple):
    """One thing to be done in a world.

    Attributes:
        id: Unique within the world and stable from run to run.
        type: The family of tasks it belongs to, by which results are broken down.
        goal: What is asked, in words, as the agent reads it.
    """

    id: str
    type: str
    goal: str


class Step(NamedTuple):
    """What the world answers to one action.

    Attributes:
        observation: The text the agent sees; may have several lines, never a blank one.
        reward: What the action earned.
        done: Whether the episode is over.
        info: At least `won` (bool, judged by the state of the world) and `admissible_commands`
            (list of str: every action that would do something now, or those of them that can be listed).
            Where it can tell, also `valid` (bool): whether the world understood this action as one that does
            something. Without it an action is valid if it was admissible before the step, so a world that takes
            free text (`search[...]`), or several wordings of one action, says it itself.
            Where it has them, also `metrics` (dict of str to float): figures of its own on the episode so far,
            such as a score; those of the last step are kept and averaged over episodes.
    """

    observation: str
    reward: float
    done: bool
    info: dict[str, Any]


@runtime_checkable
class Env(Protocol):
    """A text world that is played one episode at a time.

    A shallow copy (`copy.copy(env)`) is an independent seat: `reset` binds fresh state and nothing that copies share is
    ever changed, so many episodes can be played side by side.

    A world with a scripted expert has one attribute more, `expert`: a function `(env, task, *, max_steps) -> Trajectory`
    (in a class: a `staticmethod`) that plays `task` in `env` and writes as an agent writes. It should see what an agent
    sees; one that knows more, as that of `hotpotqa` knows the answers, says so.
    """

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks on offer, always in the same order."""
        ...

    @property
    def admissible_commands(self) -> list[str]:
        """Every action that would do something now; the same as the last step's `info["admissible_commands"]`."""
        ...

    def reset(self, task: Task) -> str:
        """Starts an episode of `task` and returns the first observation, which names the goal."""
        ...

    def step(self, action: str) -> Step:
        """Takes one action in the running episode. An action the world does not understand is answered, not raised."""
        ...
