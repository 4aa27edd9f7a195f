"""Agents, environments and rollouts for `sad collect` and `sad eval`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

import sad
from sad.agents.collect import collect, collect_endpoint, collect_expert
from sad.agents.endpoint import Endpoint
from sad.agents.prompts import prompt_text
from sad.cli.agent_options import AgentOptions
from sad.envs.protocol import Env, Task
from sad.errors import InputError, printable
from sad.hub import is_local
from sad.models import load_model, load_tokenizer
from sad.trajectories.trajectory import Trajectory

EXPERT = "expert"


class Agent(NamedTuple):
    """A model with its tokenizer, a model behind an endpoint, or (with neither) the scripted expert of the environment."""

    name: str
    model: Any = None
    tokenizer: Any = None
    endpoint: Endpoint | None = None


def load_agent(name: str, options: AgentOptions) -> Agent:
    """Loads an agent: `"expert"`, a folder with a model and its tokenizer, or a model at the endpoint.

    Raises:
        InputError: There is no endpoint, and the folder does not exist or contains no model or no tokenizer.
    """
    if name == EXPERT:
        return Agent(EXPERT)
    if options.endpoint is not None and not is_local(name):
        key = os.environ.get(options.api_key_env)
        endpoint = Endpoint(options.endpoint, name, api=options.api, api_key=key, timeout=options.timeout)
        return Agent(name, endpoint=endpoint)
    trust = options.trust_remote_code
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model("model", name, trust_remote_code=trust).eval().to(device)
    tokenizer = load_tokenizer("model", name, trust_remote_code=trust)
    if tokenizer is None:
        remedy = "Save it there with `tokenizer.save_pretrained(...)`."
        raise InputError("model", "a folder with a model and its tokenizer", f"no tokenizer in {name!r}", remedy)
    return Agent(name, model, tokenizer)


def check_endpoint_used(models: Sequence[str], options: AgentOptions) -> None:
    """Checks that a model runs at the endpoint, if one is given, and prints which models run here.

    Raises:
        InputError: All models are local folders or the expert.
    """
    here = [name for name in models if name == EXPERT or is_local(name)]
    if options.endpoint is None or not here:
        return
    if len(here) == len(models):
        got = f"{', '.join(map(repr, here))}, which {'is' if len(here) == 1 else 'are'} here"
        remedy = (
            "Remove --endpoint, or pass the model's name on the server. If a folder has the same name, run the command from "
            "another folder."
        )
        raise InputError("model", f"the name of a model at {options.endpoint}", got, remedy)
    for name in here:
        typer.echo(f"{name} runs here, not at {options.endpoint}", err=True)


def make_env(options: AgentOptions) -> Env:
    """Makes the environment and prints the number of skipped data records, if there are any.

    Raises:
        InputError: An entry of `env_options` is not `name=value`, or the environment does not know it.
    """
    keywords = {}
    for entry in options.env_options:
        key, equals, value = entry.partition("=")
        if not equals or not key:
            raise InputError("--option", "name=value", repr(entry), "Write for example --option size=small.")
        try:
            keywords[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            got = f"{entry!r} ({error})"
            raise InputError("--option", "name=value with a YAML value", got, "Put quotes around the value.") from None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*skipped")  # printed below without a source line
            env = sad.envs.make(options.env, root=options.root, split=options.split, seed=options.seed, **keywords)
    except TypeError as error:
        got = f"{', '.join(keywords) or 'none'} ({error})"
        remedy = "See the documentation of the environment."
        raise InputError("--option", f"options of {options.env!r}", got, remedy) from None
    if skipped := getattr(env, "skipped", ()):
        typer.echo(f"{options.env}: {len(skipped)} records skipped as unreadable; the first: {skipped[0]}", err=True)
    return env


def rollout_tasks(
    agent: Agent,
    env: Env,
    tasks: Sequence[Task],
    options: AgentOptions,
    *,
    samples: int = 1,
    clean: bool = True,
    keep_ids: bool = True,
    skip_ids: Collection[str] = (),
    on_trajectory: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """Runs episodes with an agent and shows a progress bar.

    With a prompt, a local model with a chat template gets the conversation as messages. Of all options the expert uses
    `max_steps` only.

    Args:
        agent: The agent.
        env: The environment.
        tasks: The tasks.
        options: The options of the command.
        samples: Number of episodes per task.
        clean: Normalize the form of the generated lines.
        keep_ids: Keep the token ids of a local model in the trajectories.
        skip_ids: Ids of trajectories to skip.
        on_trajectory: Called with every finished trajectory.

    Raises:
        InputError: The decoding is not supported by the endpoint, the prompt does not exist, or the rollout fails.
    """
    total = len(tasks) * (1 if agent.name == EXPERT else samples) - len(skip_ids)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(escape(printable(f"{agent.name}: episodes")), total=total)

        def finished(trajectory: Trajectory) -> None:
            if on_trajectory is not None:
                on_trajectory(trajectory)
            progress.advance(bar)

        if agent.name == EXPERT:
            max_steps = options.max_steps
            return collect_expert(env, tasks, skip_ids=skip_ids, max_steps=max_steps, on_trajectory=finished)
        prompt = prompt_text(options.prompt, options.env)
        if agent.endpoint is not None:
            if options.decoding != "free":
                remedy = "Use free decoding: a server does not let the client restrict the tokens."
                raise InputError("decoding", "'free' for a model at an endpoint", repr(options.decoding), remedy)
            run = partial(collect_endpoint, agent.endpoint)
        else:
            chat = bool(prompt) and bool(agent.tokenizer.chat_template)
            run = partial(collect, agent.model, agent.tokenizer, chat=chat, decoding=options.decoding, keep_ids=keep_ids)
        return run(
            env,
            tasks,
            env_name=options.env,
            samples=samples,
            temperature=options.temperature,
            seed=options.seed,
            skip_ids=skip_ids,
            on_trajectory=finished,
            extra={"model": agent.name, "prompt": options.prompt},
            prompt=prompt,
            clean=clean,
            max_steps=options.max_steps,
            max_turn_tokens=options.max_turn_tokens,
            batch_size=options.batch_size,
        )
