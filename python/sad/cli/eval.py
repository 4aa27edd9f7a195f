"""`sad eval`: play tasks with a model and report the figures of the paper's appendix C."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Option(help="Folder of a model with its tokenizer, or: expert.")],
    env: Annotated[str, typer.Option(help="The world.")] = "household",
    split: Annotated[str, typer.Option(help="Which of its tasks.")] = "valid",
    tasks: Annotated[int | None, typer.Option(help="How many, from the first; all if not given.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder of the world's data, for worlds that need one.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Option of the world, name=value; may be repeated.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="The teacher's trajectories on these tasks, for the CoT match.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder of the tokenizer that counts the expert's reasoning.")
    ] = None,
    decoding: Annotated[str, typer.Option(help="free, or admissible: actions among the world's commands.")] = "free",
    max_steps: Annotated[int, typer.Option(help="Actions per episode.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Episodes side by side.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the world and of the bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option(help="New JSON file for all figures.")] = None,
    trajectories: Annotated[Path | None, typer.Option(help="New file for the trajectories.")] = None,
) -> None:
    """Play tasks greedily with a model and report success, reasoning length, CoT match and steps."""
    import json

    from rich.console import Console

    from sad.agents.evaluate import evaluate
    from sad.cli.players import check_new_file, load_player, make_env, play_tasks
    from sad.errors import InputError
    from sad.report import table
    from sad.training.prepare import load_tokenizer
    from sad.trajectories.trajectory import read_jsonl, write_jsonl

    check_new_file(out)
    check_new_file(trajectories)
    reference = read_jsonl(teacher) if teacher is not None else None
    world = make_env(env, root, split, seed, option or [])
    player = load_player(model)
    counting = player.tokenizer if tokenizer is None else load_tokenizer("tokenizer", tokenizer)
    if counting is None:
        remedy = "Give --tokenizer: reasoning is counted in tokens."
        raise InputError("tokenizer", "a folder with a tokenizer", "none" if tokenizer is None else repr(tokenizer), remedy)
    played = play_tasks(player, world, env, tasks, decoding=decoding, max_steps=max_steps, batch_size=batch_size, seed=seed)
    figures = evaluate(played, counting, reference=reference, seed=seed)
    if trajectories is not None:
        write_jsonl(trajectories, played)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        about = {"model": model, "env": env, "split": split, "seed": seed, "max_steps": max_steps}
        out.write_text(json.dumps(about | figures, indent=1) + "\n")
    console = Console()
    evaluations = {model: figures}
    how = f", {figures['decoding']} decoding" if figures["decoding"] else ""
    console.print(table.rich_table(table.COLUMNS, table.comparison(evaluations), f"{env}, {split}{how}"))
    for header, rows in (table.by_type(evaluations), table.ends(evaluations)):
        if rows:
            console.print(table.rich_table(header, rows))
