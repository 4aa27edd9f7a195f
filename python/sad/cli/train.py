"""`sad train`: distills a student from a teacher on a trajectory file."""

import typer

from sad.cli.flags import takes
from sad.errors import InputError
from sad.training.cli_args import NAMES, TrainOptions, documented_options

# Flags that TrainOptions does not declare are fields of SADConfig. `--help` is an option of our own, which shows both.
CONTEXT_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@takes(TrainOptions)
def command(options: TrainOptions, context: typer.Context) -> None:
    """Distill a student from a teacher on a trajectory file.

    Every field of sad.SADConfig is a flag, such as --learning-rate 1e-4 --max-steps 1000 --bf16. SAD's own fields are shown
    below, and those of transformers.TrainingArguments with --fields. A YAML file (--config) holds the same names.
    """
    from sad.training.cli_args import field_help, parse_flags, read_yaml

    if options.help:
        _show_help(context)
        return
    if options.fields:
        typer.echo(field_help())
        return
    from sad.cli.rollouts import make_rollouts
    from sad.training.run import distill
    from sad.training.run_folder import RunFolder

    names = (*NAMES, "out")
    given = {name: getattr(options, name) for name in names if _was_given(context, name)}
    given |= parse_flags(context.args, context.params)
    config = options.config
    if options.resume and config is not None:
        raise InputError("config", "no file with --resume", config, "The run keeps its config; flags override it.")
    if options.resume and options.out is not None:
        run = RunFolder(options.out)
        run.check_resumable()
        config = str(run.config)
    values = (read_yaml(config, names) if config else {}) | given
    chosen = {name: values.pop(name) for name in names if name in values}
    if chosen.get("eval_data"):
        values.setdefault("eval_strategy", "epoch")
    distill(TrainOptions(**chosen, resume=options.resume), values, say=typer.echo, make_rollouts=make_rollouts)


def _was_given(context: typer.Context, name: str) -> bool:
    return context.get_parameter_source(name).name == "COMMANDLINE"


def _show_help(context: typer.Context) -> None:
    """Shows the help of a command that also declares the fields of SAD."""
    app = typer.Typer(add_completion=False)

    def documented(options: object) -> None: ...

    documented.__doc__ = command.__doc__
    app.command()(takes(documented_options())(documented))
    typer.echo(typer.main.get_command(app).get_help(context), nl=False)
