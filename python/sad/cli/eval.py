"""`sad eval`: run agents on the same tasks and report the metrics of the paper (appendix C)."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sad.cli.agent_options import ENVIRONMENT, AgentOptions
from sad.cli.flags import takes
from sad.options import option

if TYPE_CHECKING:
    from sad.agents.resumable import ResumableFile
    from sad.cli.agents import Agent
    from sad.trajectories.trajectory import Trajectory


@dataclass(frozen=True, kw_only=True)
class EvalOptions(AgentOptions):
    """The options of `sad eval`."""

    model: list[str] = option(
        help="Folder of a model with its tokenizer, expert, or the name of a model at --endpoint. Repeatable."
    )
    teacher: str | None = option(
        None, help="Reference of the CoT match: a trajectory file on the same tasks, or one of the models."
    )
    tokenizer: str | None = option(
        None, help="Folder of the tokenizer that counts the reasoning tokens. Default: that of the first model."
    )
    out: Path | None = option(None, help="New JSON file for all metrics.")
    trajectories: Path | None = option(None, help="New file for the trajectories. With several models: a new folder.")
    resume: bool = option(
        False, flag="--resume", help="Continue an interrupted evaluation. It needs --out or --trajectories."
    )
    split: str = option("valid", group=ENVIRONMENT, help="Split of the tasks, such as train or valid.")
    seed: int = option(0, group=ENVIRONMENT, help="Seed of the environment, of the sampling and of the bootstrap.")


@takes(EvalOptions)
def command(options: EvalOptions) -> None:
    """Run agents on the same tasks and report success, reasoning length, CoT match, steps and invalid actions."""
    import time

    from sad import interrupts
    from sad.agents.collect import select_tasks
    from sad.agents.evaluate import check_reference, evaluate
    from sad.cli.agents import check_endpoint_used, load_agent, make_env, rollout_tasks
    from sad.errors import InputError
    from sad.trajectories.read import read_jsonl

    models = options.model
    if len(set(models)) < len(models):
        raise InputError("model", "each model once", ", ".join(map(repr, models)), "Remove the repetition.")
    if options.resume and options.out is None and options.trajectories is None:
        raise InputError("resume", "--out or --trajectories with --resume", "neither", "Pass those of the interrupted run.")
    if options.resume and options.out is not None and options.out.exists():
        typer.echo(f"{options.out}: complete, nothing left to do")
        return
    _check_new_files(options)
    paths = _episode_paths(options)
    reference = None if options.teacher is None or options.teacher in models else read_jsonl(options.teacher)
    check_endpoint_used(models, options)
    env = make_env(options)
    tasks = select_tasks(env, options.tasks)
    if reference is not None:
        check_reference(reference, [task.id for task in tasks])
    agents = {name: load_agent(name, options) for name in models}
    tokenizer = _load_counting_tokenizer(options, agents)
    episodes = {name: _open_episodes(path, name, options, len(tasks)) for name, path in paths.items()}
    trajectories: dict[str, list[Trajectory]] = {}
    seconds: dict[str, float] = {}
    resumed: dict[str, int] = {}
    for name, agent in agents.items():
        file = episodes.get(name)
        if file is not None:
            interrupts.explain(file.kept)
        earlier = {} if file is None else dict(file.trajectories)
        resumed[name] = len(earlier)
        start = time.perf_counter()
        on_trajectory = None if file is None else file.add
        with nullcontext() if file is None else closing(file):
            played = rollout_tasks(agent, env, tasks, options, skip_ids=tuple(earlier), on_trajectory=on_trajectory)
        seconds[name] = time.perf_counter() - start
        by_id = earlier | {trajectory.id: trajectory for trajectory in played}
        trajectories[name] = [by_id[task.id] for task in tasks]
        if file is not None and not file.complete:
            file.finish(trajectories[name])
    if options.teacher in trajectories:
        reference = trajectories[options.teacher]
    evaluations = {
        name: {
            **evaluate(trajectories[name], tokenizer, reference=reference, seed=options.seed),
            "seconds": seconds[name],
            "resumed_episodes": resumed[name],
        }
        for name in models
    }
    if options.out is not None:
        _write_json(options, len(tasks), evaluations)
    for file in episodes.values():
        file.discard(keep_out=options.trajectories is not None)
    _print_tables(options, len(tasks), evaluations)


def _check_new_files(options: EvalOptions) -> None:
    """Checks before any work that the output files can be created."""
    from sad.files import check_new_file

    check_new_file("out", options.out)
    if not options.resume:
        check_new_file("trajectories", options.trajectories)
        for path in _trajectory_paths(options).values():
            check_new_file("trajectories", path)


def _episode_paths(options: EvalOptions) -> dict[str, Path]:
    """Returns the file of each model for the episodes during the evaluation. Without an output there is none.

    Raises:
        InputError: Two models have the same file name.
    """
    if options.trajectories is not None or options.out is None:
        return _trajectory_paths(options)
    out = options.out
    return {name: out.with_name(f"{out.name}.{number}.jsonl") for number, name in enumerate(options.model)}


def _open_episodes(path: Path, model: str, options: EvalOptions, task_count: int) -> ResumableFile:
    """Opens the episodes of a model; with --resume those of the interrupted run.

    Raises:
        InputError: The file exists without --resume, or the interrupted run had other options.
    """
    from sad.agents.prompts import prompt_text
    from sad.agents.resumable import ResumableFile
    from sad.cli.agents import EXPERT

    config: dict[str, Any] = {"model": model, "env": options.env, "split": options.split, "root": options.root}
    config |= {"option": options.env_options, "tasks": task_count, "seed": options.seed, "max_steps": options.max_steps}
    if model != EXPERT:
        config |= {"prompt": options.prompt, "prompt_text": prompt_text(options.prompt, options.env)}
        config |= {"temperature": options.temperature, "decoding": options.decoding}
        config |= {"max_turn_tokens": options.max_turn_tokens, "endpoint": options.endpoint, "api": options.api}
    return ResumableFile(path, config, resume=options.resume)


def _trajectory_paths(options: EvalOptions) -> dict[str, Path]:
    """Returns the trajectory file of each model, or nothing without `--trajectories`.

    Raises:
        InputError: Two models have the same file name.
    """
    from sad.errors import InputError

    if options.trajectories is None:
        return {}
    if len(options.model) == 1:
        return {options.model[0]: options.trajectories}
    paths = {name: options.trajectories / f"{name.strip('/.').replace('/', '-')}.jsonl" for name in options.model}
    owners: dict[str, str] = {}
    for name, path in paths.items():
        other = owners.setdefault(path.name.lower(), name)  # some file systems ignore the case
        if other != name:
            got = f"{path.name} for {other!r} and for {name!r}"
            raise InputError("trajectories", "another file for each model", got, "Rename one of the model folders.")
    return paths


def _load_counting_tokenizer(options: EvalOptions, agents: dict[str, Agent]) -> Any:
    """Returns the tokenizer that counts the reasoning tokens of all agents."""
    from sad.errors import InputError
    from sad.models import load_tokenizer

    if options.tokenizer is not None:
        tokenizer = load_tokenizer("tokenizer", options.tokenizer, trust_remote_code=options.trust_remote_code)
    else:
        tokenizer = next((agent.tokenizer for agent in agents.values() if agent.tokenizer is not None), None)
    if tokenizer is None:
        got = "none" if options.tokenizer is None else repr(options.tokenizer)
        remedy = "Set --tokenizer: reasoning is counted in tokens."
        raise InputError("tokenizer", "a folder with a tokenizer", got, remedy)
    return tokenizer


def _write_json(options: EvalOptions, task_count: int, evaluations: dict[str, dict[str, Any]]) -> None:
    import json

    from sad.files import write_file

    content: dict[str, Any] = {"env": options.env, "split": options.split, "root": options.root}
    content |= {"option": options.env_options, "tasks": task_count, "seed": options.seed, "decoding": options.decoding}
    content |= {"temperature": options.temperature, "prompt": options.prompt, "max_steps": options.max_steps}
    content |= {"teacher": options.teacher, "models": evaluations}
    write_file(options.out, json.dumps(content, indent=1) + "\n", overwrite=False)


def _print_tables(options: EvalOptions, task_count: int, evaluations: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.text import Text

    from sad.errors import printable
    from sad.report import table

    console = Console()
    sampling = "greedy" if options.temperature == 0 else f"temperature {options.temperature:g}"
    title = f"{options.env}, {options.split}, {task_count} tasks: {options.decoding} decoding, {sampling}"
    more = (table.env_metrics(evaluations), table.by_type(evaluations), table.ends(evaluations))
    tables = table.terminal_tables(table.comparison(evaluations), title, stacked=True)
    tables += [part for one in more if one.rows for part in table.terminal_tables(one, stacked=True)]
    for part in tables:
        console.print(part)
    console.print(table.UNITS, highlight=False)
    seconds = ", ".join(_duration(name, evaluation) for name, evaluation in evaluations.items())
    console.print(Text(printable(seconds)))


def _duration(name: str, evaluation: dict[str, Any]) -> str:
    resumed = evaluation["resumed_episodes"]
    earlier = f" without {resumed} earlier episodes" if resumed else ""
    return f"{name}: {evaluation['seconds']:.1f} s{earlier}"
