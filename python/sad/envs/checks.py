"""Argument checks that the environments share."""

from __future__ import annotations

from collections.abc import Sequence

from sad.envs.protocol import Task
from sad.errors import InputError


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises InputError unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(name, "one of " + ", ".join(choices), repr(value), "Pass one of these.")


def check_task_count(count: int | None, *, optional: bool = False) -> None:
    """Raises InputError unless `count` is an integer of at least 1, or None if it is `optional`."""
    if optional and count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        expected = "at least one, or None for all" if optional else "at least one"
        raise InputError("tasks", expected, repr(count), "Ask for one or more.")


def check_step(action: str, *, started: bool, done: bool, example: str) -> None:
    """Raises InputError unless an episode is running and `action` is a string.

    Args:
        action: The argument of `env.step`.
        started: Whether `env.reset` was called.
        done: Whether the episode is over.
        example: An action for the error message.
    """
    if not started or done:
        raise not_running("one that is over" if done else "none")
    if not isinstance(action, str):
        raise InputError("action", "text", f"a {type(action).__name__}", f"Pass {example}.")


def not_running(got: str) -> InputError:
    """Returns the error for a call that needs a running episode."""
    return InputError("env.step", "a running episode", got, "Call env.reset(task) first.")


def unknown_task(task: object, tasks: Sequence[Task]) -> InputError:
    """Returns the error for a task that is not in `tasks`."""
    got = repr(task.id) if isinstance(task, Task) else f"a {type(task).__name__}"
    return InputError("task", f"one of the {len(tasks)} tasks of this env", got, "Pick from env.tasks.")
