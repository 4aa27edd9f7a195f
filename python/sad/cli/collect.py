"""`sad collect`: let an agent play tasks, and keep the trajectories."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Option(help="Folder of a model with its tokenizer, or: expert.")],
    out: Annotated[Path, typer.Option(help="New file of trajectories, .jsonl or .jsonl.gz.")],
    env: Annotated[str, typer.Option(help="The world.")] = "household",
    split: Annotated[str, typer.Option(help="Which of its tasks.")] = "train",
    tasks: Annotated[int | None, typer.Option(help="How many, from the first; all if not given.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder of the world's data, for worlds that need one.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Option of the world, name=value; may be repeated.")] = None,
    samples: Annotated[int, typer.Option(help="Episodes per task; several are sampled.")] = 1,
    temperature: Annotated[float | None, typer.Option(help="0: greedy. Default: 0 for one sample, 0.2 for several.")] = None,
    decoding: Annotated[str, typer.Option(help="free, or admissible: actions among the world's commands.")] = "free",
    solved: Annotated[bool, typer.Option("--solved", help="Keep solved episodes only.")] = False,
    max_steps: Annotated[int, typer.Option(help="Actions per episode.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Episodes side by side.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the world and of sampling.")] = 0,
) -> None:
    """Let an agent or the scripted expert play tasks, and keep the trajectories."""
    from collections import Counter

    from sad.cli.players import check_new_file, load_player, make_env, play_tasks
    from sad.trajectories.trajectory import write_jsonl

    check_new_file(out)
    world = make_env(env, root, split, seed, option or [])
    played = play_tasks(
        load_player(model),
        world,
        env,
        tasks,
        samples=samples,
        temperature=temperature,
        decoding=decoding,
        max_steps=max_steps,
        batch_size=batch_size,
        seed=seed,
    )
    kept = [trajectory for trajectory in played if trajectory.success] if solved else played
    write_jsonl(out, kept)
    won = sum(bool(trajectory.success) for trajectory in played)
    ends = Counter(end for trajectory in played if (end := trajectory.extra.get("end")))
    why = f" (ended: {', '.join(f'{end} {count}' for end, count in ends.most_common())})" if ends else ""
    typer.echo(f"{out}: {len(kept)} trajectories; {won} of {len(played)} episodes solved{why}")
