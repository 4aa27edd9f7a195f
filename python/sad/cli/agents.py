"""What `sad collect` and `sad eval` share: who plays, in which world, and the episodes with a progress bar."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import typer
import yaml

import sad
from sad.agents.collect import collect, collect_endpoint, collect_expert
from sad.agents.endpoint import Endpoint
from sad.agents.prompts import prompt_text
from sad.envs.protocol import Env, Task
from sad.errors import InputError
from sad.models import load_model, load_tokenizer
from sad.trajectories.trajectory import Trajectory

EXPERT = "expert"


class Player(NamedTuple):
    """Who plays: a model with its tokenizer, a model behind a URL, or, with neither, the world's scripted expert."""

    name: str
    model: Any = None
    tokenizer: Any = None
    endpoint: Endpoint | None = None


class EndpointOptions(NamedTuple):
    """Where models are asked that are no folder, and how; None: nowhere.

    Attributes:
        url: As of `Endpoint`, likewise `api` and `timeout`.
        key_variable: Environment variable with the key; one that is not set sends none.
    """

    url: str | None
    api: str = "chat"
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 120.0


def load_player(name: str, endpoint: EndpointOptions) -> Player:
    """The player called `name`: `"expert"`, a folder with a model and its tokenizer, or a model at the endpoint.

    Raises:
        InputError: There is no endpoint and the folder is missing or holds no model or no tokenizer.
    """
    if name == EXPERT:
        return Player(EXPERT)
    if endpoint.url is not None and not Path(name).is_dir():
        key = os.environ.get(endpoint.key_variable)
        asked = Endpoint(endpoint.url, name, api=endpoint.api, api_key=key, timeout=endpoint.timeout)
        return Player(name, endpoint=asked)
    model = load_model("model", name).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer("model", name)
    if tokenizer is None:
        remedy = "Save it there with `tokenizer.save_pretrained(...)`."
        raise InputError("model", "a folder with a model and its tokenizer", f"no tokenizer in {name!r}", remedy)
    return Player(name, model, tokenizer)


def make_env(env: str, root: str | None, split: str | None, seed: int, options: Sequence[str]) -> Env:
    """A world by name, with further options as `name=value`. Says how many records of its data could not be read, if any.

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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*skipped")  # said below, without a line of source
            world = sad.envs.make(env, root=root, split=split, seed=seed, **settings)
    except TypeError as error:
        got = ", ".join(settings) or "none"
        raise InputError("--option", f"options of {env!r}", f"{got} ({error})", "See the world's documentation.") from None
    if skipped := getattr(world, "skipped", ()):
        typer.echo(f"{env}: {len(skipped)} records skipped that could not be read; the first: {skipped[0]}", err=True)
    return world


def check_new_file(out: Path | None) -> None:
    """Refuses to overwrite.

    Raises:
        InputError: The file exists.
    """
    if out is not None and out.exists():
        raise InputError("out", "a new file", f"{str(out)!r}, which exists", "Choose another name, or remove it.")


def play_tasks(
    player: Player,
    env: Env,
    env_name: str,
    tasks: Sequence[Task],
    *,
    prompt: str,
    done: Collection[str] = (),
    keep: Callable[[Trajectory], None] | None = None,
    **limits: Any,
) -> list[Trajectory]:
    """Plays tasks with a progress bar; `limits` go to `sad.agents.collect.collect`.

    The expert knows one way to play, so of the limits only `max_steps` concerns it.

    Args:
        player: Who plays.
        env: The world.
        env_name: Its name.
        tasks: What is played.
        prompt: A name of `sad.agents.prompts.prompt_text`. With a prompt, models with a chat template are talked to by it.
        done: Ids that are not played again.
        keep: Called with every trajectory as it is finished.

    Raises:
        InputError: As `collect`, `collect_endpoint`, `collect_expert` and `prompt_text` do.
    """
    from rich.console import Console
    from rich.progress import Progress

    total = len(tasks) * (1 if player.name == EXPERT else limits.get("samples", 1)) - len(done)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"{player.name} plays", total=total)

        def finished(trajectory: Trajectory) -> None:
            if keep is not None:
                keep(trajectory)
            progress.advance(bar)

        if player.name == EXPERT:
            return collect_expert(env, tasks, done=done, max_steps=limits["max_steps"], on_trajectory=finished)
        text = prompt_text(prompt, env_name)
        if player.endpoint is not None:
            if (decoding := limits.pop("decoding")) != "free":
                remedy = "Decode freely: what the server's model may write cannot be limited from here."
                raise InputError("decoding", "'free' for a model at an endpoint", repr(decoding), remedy)
            play = partial(collect_endpoint, player.endpoint)
        else:
            chat = bool(text) and bool(player.tokenizer.chat_template)
            play = partial(collect, player.model, player.tokenizer, chat=chat)
        extra = {"model": player.name, "prompt": prompt}
        return play(env, tasks, env_name=env_name, prompt=text, extra=extra, done=done, on_trajectory=finished, **limits)
