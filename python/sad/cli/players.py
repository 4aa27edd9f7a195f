"""What `sad collect` and `sad eval` share: who plays, which tasks, and the episodes with a progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import sad
from sad.agents.collect import choose_tasks, collect, collect_expert
from sad.agents.envs.protocol import Env
from sad.errors import InputError
from sad.training.prepare import load_model, load_tokenizer
from sad.trajectories.trajectory import Trajectory

EXPERT = "expert"


class Player(NamedTuple):
    """Who plays: a model with its tokenizer, or, with neither, the world's scripted expert."""

    name: str
    model: Any = None
    tokenizer: Any = None


def load_player(name: str) -> Player:
    """The player called `name`: `"expert"`, or a folder with a model and its tokenizer.

    Raises:
        InputError: The folder is missing or holds no model or no tokenizer.
    """
    if name == EXPERT:
        return Player(EXPERT)
    model = load_model("model", name).eval()
    tokenizer = load_tokenizer("model", name)
    if tokenizer is None:
        remedy = "Save it there with `tokenizer.save_pretrained(...)`."
        raise InputError("model", "a folder with a model and its tokenizer", f"no tokenizer in {name!r}", remedy)
    return Player(name, model, tokenizer)


def make_env(env: str, root: str | None, split: str | None, seed: int, options: Sequence[str]) -> Env:
    """A world by name, with further options as `name=value`.

    Raises:
        InputError: An option is not of that form or unknown to the world.
    """
    settings = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise InputError("--option", "name=value", repr(option), "Write for example --option size=small.")
        settings[key] = yaml.safe_load(value)
    try:
        return sad.envs.make(env, root=root, split=split, seed=seed, **settings)
    except TypeError as error:
        got = ", ".join(settings) or "none"
        raise InputError("--option", f"options of {env!r}", f"{got} ({error})", "See the world's documentation.") from None


def check_new_file(out: Path | None) -> None:
    """Refuses to overwrite.

    Raises:
        InputError: The file exists.
    """
    if out is not None and out.exists():
        raise InputError("out", "a new file", f"{str(out)!r}, which exists", "Choose another name, or remove it.")


def play_tasks(player: Player, env: Env, env_name: str, count: int | None, **limits: Any) -> list[Trajectory]:
    """Plays the first `count` tasks with a progress bar; `limits` go to `sad.agents.collect.collect`.

    The expert knows one way to play, so of the limits only `max_steps` concerns it.

    Raises:
        InputError: As `collect` and `collect_expert` do.
    """
    from rich.console import Console
    from rich.progress import Progress

    tasks = choose_tasks(env, count)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"{player.name} plays", total=len(tasks) * limits.get("samples", 1))
        if player.model is None:
            return collect_expert(
                env, tasks, max_steps=limits["max_steps"], on_trajectory=lambda trajectory: progress.advance(bar)
            )
        return collect(
            player.model,
            player.tokenizer,
            env,
            tasks,
            env_name=env_name,
            extra={"model": player.name},
            on_trajectory=lambda trajectory: progress.advance(bar),
            **limits,
        )
