"""`sad demo`: distill small agents from a larger one with three methods and compare them, in a few minutes on a laptop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sad.cli.flags import takes
from sad.demo.config import DemoOptions

if TYPE_CHECKING:
    from rich.console import Console


@takes(DemoOptions)
def command(options: DemoOptions) -> None:
    """Distill small agents from a larger one with three methods, in a few minutes on the CPU.

    A scripted expert solves household tasks. A teacher model is trained on its
    trajectories and then solves further tasks. Three students with a third of
    the parameters learn from these trajectories: with SAD, with token-level KL
    and by imitation. Finally all run on the same unseen tasks. The command
    downloads nothing. The folder contains the trajectories, all models,
    results.json and report.html.
    """
    from rich.console import Console
    from rich.markup import escape

    from sad import interrupts
    from sad.demo.progress import Stages
    from sad.demo.run import check_folder, run_demo
    from sad.quiet import quiet_libraries

    check_folder(options.out)
    quiet_libraries()
    console = Console()
    console.print(f"[bold]sad demo[/], seed {options.seed}: results go to {escape(str(options.out))}/\n", highlight=False)
    interrupts.explain(lambda: f"{options.out} is not complete. Run the command again with a new folder.")
    with Stages(console) as stages:
        results = run_demo(options, stages)
    _print_results(console, options, results)


def _print_results(console: Console, options: DemoOptions, results: dict[str, Any]) -> None:
    from sad.report import table

    evaluations = results["evaluations"]
    console.print()
    title = f"{results['data']['unseen_tasks']} unseen tasks, greedy, free decoding"
    for part in table.terminal_tables(table.comparison(evaluations), title, stacked=True):
        console.print(part)
    console.print(table.UNITS, highlight=False)
    console.print()
    for part in table.terminal_tables(table.differences(results["differences"])):
        console.print(part)
    teacher, student = (results["models"][name]["parameters"] for name in ("teacher", "student"))
    console.print(
        f"\nThe students have {student / teacher:.0%} of the teacher's {teacher:,} parameters.\n"
        "One seed says little about methods: `sad study` compares them with several.\n"
        f"Total time: {results['seconds']:.0f} s. Loss curves, time per stage and span labels: "
        f"{options.out / 'report.html'}",
        highlight=False,
        markup=False,
    )
