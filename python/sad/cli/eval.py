"""`sad eval`: play tasks with one model or several and report the figures of the paper's appendix C."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[
        list[str], typer.Option(help="Folder of a model with its tokenizer, expert, or the name at --endpoint; repeatable.")
    ],
    env: Annotated[str, typer.Option(help="The world.")] = "household",
    split: Annotated[str, typer.Option(help="Which of its tasks.")] = "valid",
    tasks: Annotated[int | None, typer.Option(help="How many, from the first; all if not given.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder of the world's data, for worlds that need one.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Option of the world, name=value; may be repeated.")] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="For the CoT match: the teacher's trajectories on these tasks, or one of the models given."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder of the tokenizer that counts reasoning. Default: the first model's.")
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="none, paper (appendix E.1), world (with the world's commands), or a text file.")
    ] = "none",
    temperature: Annotated[float, typer.Option(help="Of the sampling, 0: greedy.")] = 0.0,
    decoding: Annotated[str, typer.Option(help="free, or admissible: actions among the world's commands.")] = "free",
    max_steps: Annotated[int, typer.Option(help="Actions per episode.")] = 50,
    max_turn_tokens: Annotated[int, typer.Option(help="Tokens from an observation to the action.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Episodes side by side.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the world, of sampling and of the bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option(help="New JSON file for all figures.")] = None,
    trajectories: Annotated[
        Path | None, typer.Option(help="New file for the trajectories; a folder for several models.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible server, up to /v1.")] = None,
    api: Annotated[str, typer.Option(help="Of the endpoint: chat, or completions for models without a template.")] = "chat",
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the endpoint's key.")] = "OPENAI_API_KEY",
    timeout: Annotated[float, typer.Option(help="Seconds for one request to the endpoint.")] = 120.0,
) -> None:
    """Play the same tasks with each model and report success, reasoning length, CoT match, steps and invalid actions."""
    import json
    import time

    from rich.console import Console

    from sad.agents.collect import choose_tasks
    from sad.agents.evaluate import check_reference, evaluate
    from sad.cli.agents import EndpointOptions, check_new_file, load_player, make_env, play_tasks
    from sad.errors import InputError
    from sad.models import load_tokenizer
    from sad.report import table
    from sad.trajectories.trajectory import read_jsonl, write_jsonl

    check_new_file(out)
    check_new_file(trajectories)
    if len(set(model)) < len(model):
        raise InputError("model", "each model once", ", ".join(map(repr, model)), "Leave out the repetition.")
    reference = None if teacher is None or teacher in model else read_jsonl(teacher)
    world = make_env(env, root, split, seed, option or [])
    chosen = choose_tasks(world, tasks)
    if reference is not None:
        check_reference(reference, [task.id for task in chosen])
    where = EndpointOptions(endpoint, api, api_key_env, timeout)
    players = {name: load_player(name, where) for name in model}
    counting = next((player.tokenizer for player in players.values() if player.tokenizer is not None), None)
    if tokenizer is not None:
        counting = load_tokenizer("tokenizer", tokenizer)
    if counting is None:
        remedy = "Give --tokenizer: reasoning is counted in tokens."
        raise InputError("tokenizer", "a folder with a tokenizer", "none" if tokenizer is None else repr(tokenizer), remedy)
    played, seconds = {}, {}
    for name, player in players.items():
        begun = time.perf_counter()
        played[name] = play_tasks(
            player,
            world,
            env,
            chosen,
            prompt=prompt,
            temperature=temperature,
            decoding=decoding,
            max_steps=max_steps,
            max_turn_tokens=max_turn_tokens,
            batch_size=batch_size,
            seed=seed,
        )
        seconds[name] = time.perf_counter() - begun
        if trajectories is not None:
            file = f"{name.strip('/.').replace('/', '-')}.jsonl"
            write_jsonl(trajectories if len(model) == 1 else trajectories / file, played[name])
    if teacher in played:
        reference = played[teacher]
    evaluations = {
        name: {**evaluate(episodes, counting, reference=reference, seed=seed), "seconds": seconds[name]}
        for name, episodes in played.items()
    }
    if out is not None:
        about = {"env": env, "split": split, "root": root, "option": option or [], "tasks": len(chosen), "seed": seed}
        about |= {"decoding": decoding, "temperature": temperature, "prompt": prompt, "max_steps": max_steps}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(about | {"teacher": teacher, "models": evaluations}, indent=1) + "\n")
    console = Console()
    how = "greedy" if temperature == 0 else f"temperature {temperature:g}"
    title = f"{env}, {split}, {len(chosen)} tasks: {decoding} decoding, {how}; in parentheses 95 % intervals"
    console.print(table.rich_table(table.COLUMNS, table.comparison(evaluations), title, stacked=True))
    for header, rows in (table.own_metrics(evaluations), table.by_type(evaluations), table.ends(evaluations)):
        if rows:
            console.print(table.rich_table(header, rows, stacked=True))
    console.print(", ".join(f"{name}: {took:.1f} s" for name, took in seconds.items()), highlight=False)
