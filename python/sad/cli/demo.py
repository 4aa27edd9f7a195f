"""`sad demo`: distil a small agent from a larger one and watch both play, in a few minutes on a laptop."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[Path, typer.Option(help="Folder of the run, new or empty.")] = Path("demo-run"),
    seed: Annotated[int, typer.Option(help="Seed of scenes, models, batches.")] = 0,
    fast: Annotated[
        bool, typer.Option("--fast", help="A tiny run of seconds that shows the way but learns little.")
    ] = False,
) -> None:
    """Distil a small agent from a larger one and watch it play, in a few minutes.

    A scripted expert plays household tasks, a teacher model learns from it and plays, and a student a third of its
    size is distilled from what the teacher wrote. Then teacher, student and the untrained student play the same unseen
    tasks. Everything is made on the spot on the CPU; nothing is downloaded. The folder keeps the trajectories, both
    models, results.json and report.html.
    """
    import warnings

    from rich.console import Console
    from transformers.utils import logging

    from sad.demo.config import FAST, FULL
    from sad.demo.progress import Stages
    from sad.demo.run import check_folder, run_demo
    from sad.report import table

    check_folder(out)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers|accelerate")
    console = Console()
    settings = (FAST if fast else FULL)._replace(seed=seed)
    console.print(f"[bold]sad demo[/], seed {seed}: everything is kept in {out}/\n", highlight=False)
    with Stages(console) as stages:
        results = run_demo(out, settings, stages)
    evaluations = results["evaluations"]
    console.print()
    title = f"{results['data']['unseen_tasks']} unseen tasks, greedy, free decoding"
    console.print(table.rich_table(table.COLUMNS, table.comparison(evaluations), title, stacked=True))
    teacher, student = evaluations["teacher"], evaluations["SAD student"]
    sizes = {name: results["models"][name]["parameters"] for name in ("teacher", "student")}
    share = f", {student['successes'] / teacher['successes']:.0%} of the teacher's" if teacher["successes"] else ""
    console.print(
        f"\nThe student has {sizes['student'] / sizes['teacher']:.0%} of the teacher's {sizes['teacher']:,} parameters and "
        f"solves {student['successes']} of {student['tasks']} tasks{share}.\n"
        f"{results['seconds']:.0f} s in all. Curves, time per stage and the mask overlay: {out / 'report.html'}",
        highlight=False,
    )
