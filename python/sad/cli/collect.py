"""`sad collect`: run an agent on tasks and save the trajectories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sad.cli.agent_options import PROMPT_HELP, ROLLOUT, AgentOptions
from sad.cli.flags import takes
from sad.options import option

if TYPE_CHECKING:
    from sad.trajectories.trajectory import Trajectory


@dataclass(frozen=True, kw_only=True)
class CollectOptions(AgentOptions):
    """The options of `sad collect`."""

    model: str = option(help="Folder of a model with its tokenizer, expert, or the name of a model at --endpoint.")
    out: Path = option(help="New trajectory file, .jsonl or .jsonl.gz.")
    solved: bool = option(False, flag="--solved", help="Save successful episodes only.")
    resume: bool = option(False, flag="--resume", help="Continue an interrupted collection.")
    samples: int = option(1, group=ROLLOUT, help="Number of episodes per task.")
    prompt: str = option("paper", group=ROLLOUT, help=PROMPT_HELP)
    temperature: float = option(0.2, group=ROLLOUT, help="Sampling temperature. 0 is greedy.")
    keep_ids: bool = option(
        True,
        group=ROLLOUT,
        help="Keep the token ids of a local model, so that training need not tokenize the text.",
    )
    clean: bool = option(True, group=ROLLOUT, help="Normalize the form of the generated lines: prefixes, line ends.")


@takes(CollectOptions)
def command(options: CollectOptions) -> None:
    """Run an agent or the scripted expert on tasks, and save the trajectories."""
    from sad import interrupts
    from sad.agents.collect import sample_id, select_tasks
    from sad.agents.resumable import ResumableFile
    from sad.cli.agents import EXPERT, check_endpoint_used, load_agent, make_env, rollout_tasks
    from sad.files import check_new_file

    if not (options.resume and options.out.exists()):
        check_new_file("out", options.out)
    check_endpoint_used([options.model], options)
    env = make_env(options)
    tasks = select_tasks(env, options.tasks)
    samples = 1 if options.model == EXPERT else options.samples
    config = _run_config(options, len(tasks))
    if options.model != EXPERT and options.prompt == "paper" and options.endpoint is None:
        typer.echo(
            "The model gets the prompt of the paper. A model that was trained on transcripts needs --prompt none.", err=True
        )
    agent = load_agent(options.model, options)
    file = ResumableFile(options.out, config, resume=options.resume)
    if file.complete:
        typer.echo(f"{options.out}: complete, nothing left to do")
        return
    if options.resume:
        dropped = "; dropped an incomplete one" if file.dropped_lines else ""
        typer.echo(f"{options.out}: {len(file.trajectories)} episodes exist already{dropped}", err=True)
    interrupts.explain(file.kept)
    with closing(file):
        rollout_tasks(
            agent,
            env,
            tasks,
            options,
            samples=samples,
            clean=options.clean,
            keep_ids=options.keep_ids,
            skip_ids=tuple(file.trajectories),
            on_trajectory=file.add,
        )
    trajectories = [file.trajectories[sample_id(task, k)] for k in range(samples) for task in tasks]
    saved = [trajectory for trajectory in trajectories if trajectory.success] if options.solved else trajectories
    file.finish(saved)
    typer.echo(f"{options.out}: {len(saved)} trajectories; {_summary(trajectories)}")


def _run_config(options: CollectOptions, task_count: int) -> dict[str, object]:
    """Returns the options that determine the episodes. A resumed run must have the same."""
    from sad.agents.prompts import prompt_text
    from sad.cli.agents import EXPERT

    config: dict[str, object] = {"model": options.model, "env": options.env, "split": options.split, "root": options.root}
    config |= {"option": options.env_options, "tasks": task_count, "seed": options.seed, "max_steps": options.max_steps}
    if options.model == EXPERT:
        return config
    config |= {"prompt": options.prompt, "prompt_text": prompt_text(options.prompt, options.env)}
    config |= {"samples": options.samples, "clean": options.clean, "temperature": options.temperature}
    config |= {"decoding": options.decoding, "max_turn_tokens": options.max_turn_tokens}
    return config | ({"endpoint": options.endpoint, "api": options.api} if options.endpoint else {})


def _summary(trajectories: Sequence[Trajectory]) -> str:
    won = sum(bool(trajectory.success) for trajectory in trajectories)
    ends = Counter(end for trajectory in trajectories if (end := trajectory.extra.get("end")))
    reasons = f" (ended: {', '.join(f'{end} {count}' for end, count in ends.most_common())})" if ends else ""
    return f"{won} of {len(trajectories)} episodes solved{reasons}"
