"""`sad collect`: let an agent play tasks, and keep the trajectories."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[str, typer.Option(help="Folder of a model with its tokenizer, expert, or the name at --endpoint.")],
    out: Annotated[Path, typer.Option(help="New file of trajectories, .jsonl or .jsonl.gz.")],
    env: Annotated[str, typer.Option(help="The world.")] = "household",
    split: Annotated[str, typer.Option(help="Which of its tasks.")] = "train",
    tasks: Annotated[int | None, typer.Option(help="How many, from the first; all if not given.")] = None,
    root: Annotated[str | None, typer.Option(help="Folder of the world's data, for worlds that need one.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Option of the world, name=value; may be repeated.")] = None,
    prompt: Annotated[
        str, typer.Option(help="paper (appendix E.1), world (with the world's commands), none, or a text file.")
    ] = "paper",
    samples: Annotated[int, typer.Option(help="Episodes per task.")] = 1,
    temperature: Annotated[float, typer.Option(help="Of the sampling, 0: greedy.")] = 0.2,
    decoding: Annotated[str, typer.Option(help="free, or admissible: actions among the world's commands.")] = "free",
    clean: Annotated[bool, typer.Option(help="Mend the form of what the model writes: prefixes, line ends.")] = True,
    solved: Annotated[bool, typer.Option("--solved", help="Keep solved episodes only.")] = False,
    max_steps: Annotated[int, typer.Option(help="Actions per episode.")] = 50,
    max_turn_tokens: Annotated[int, typer.Option(help="Tokens from an observation to the action.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Episodes side by side.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the world and of sampling.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a collection that was stopped.")] = False,
    endpoint: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible server, up to /v1.")] = None,
    api: Annotated[str, typer.Option(help="Of the endpoint: chat, or completions for models without a template.")] = "chat",
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the endpoint's key.")] = "OPENAI_API_KEY",
    timeout: Annotated[float, typer.Option(help="Seconds for one request to the endpoint.")] = 120.0,
) -> None:
    """Let an agent or the scripted expert play tasks, and keep the trajectories."""
    from collections import Counter

    from sad.agents.collect import choose_tasks, sampled_id
    from sad.agents.prompts import prompt_text
    from sad.agents.resumable import Journal
    from sad.cli.agents import EXPERT, EndpointOptions, load_player, make_env, play_tasks

    world = make_env(env, root, split, seed, option or [])
    chosen = choose_tasks(world, tasks)
    settings: dict[str, object] = {"model": model, "env": env, "split": split, "root": root, "option": option or []}
    settings |= {"tasks": len(chosen), "seed": seed, "max_steps": max_steps}
    if model == EXPERT:
        samples = 1
    else:
        settings |= {"prompt": prompt, "prompt_text": prompt_text(prompt, env), "samples": samples, "clean": clean}
        settings |= {"temperature": temperature, "decoding": decoding, "max_turn_tokens": max_turn_tokens}
        settings |= {"endpoint": endpoint, "api": api} if endpoint else {}
        if prompt == "paper" and endpoint is None:
            typer.echo(
                "The model reads the paper's prompt; one trained on transcripts without any wants --prompt none.", err=True
            )
    player = load_player(model, EndpointOptions(endpoint, api, api_key_env, timeout))
    journal = Journal(out, settings, resume=resume)
    if journal.complete:
        typer.echo(f"{out}: complete, nothing left to do")
        return
    if resume:
        torn = "; a half-written one was dropped" if journal.dropped else ""
        typer.echo(f"{out}: {len(journal.done)} episodes were there already{torn}", err=True)
    play_tasks(
        player,
        world,
        env,
        chosen,
        prompt=prompt,
        done=tuple(journal.done),
        keep=journal.add,
        samples=samples,
        temperature=temperature,
        decoding=decoding,
        clean=clean,
        max_steps=max_steps,
        max_turn_tokens=max_turn_tokens,
        batch_size=batch_size,
        seed=seed,
    )
    played = [journal.done[sampled_id(task, sample)] for sample in range(samples) for task in chosen]
    kept = [trajectory for trajectory in played if trajectory.success] if solved else played
    journal.finish(kept)
    won = sum(bool(trajectory.success) for trajectory in played)
    ends = Counter(end for trajectory in played if (end := trajectory.extra.get("end")))
    why = f" (ended: {', '.join(f'{end} {count}' for end, count in ends.most_common())})" if ends else ""
    typer.echo(f"{out}: {len(kept)} trajectories; {won} of {len(played)} episodes solved{why}")
