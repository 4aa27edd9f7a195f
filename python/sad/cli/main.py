"""The `sad` command, with one module per subcommand. Prints one message and exits with code 2 for bad input."""

from __future__ import annotations

import importlib
import os
import sys

import typer

from sad.errors import InputError, LostProcessError

COMMANDS = ("demo", "collect", "inspect", "plan", "cache", "train", "eval", "bench", "doctor")

app = typer.Typer(
    name="sad",
    help="Structured Agent Distillation: distill large ReAct-style agents into small ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name in COMMANDS:
    _module = importlib.import_module(f"sad.cli.{_name}")
    app.command(_name, context_settings=getattr(_module, "CONTEXT_SETTINGS", None))(_module.command)


def main() -> None:
    """Runs the `sad` command."""
    try:
        app()
    except InputError as error:
        if isinstance(error, LostProcessError) and os.environ.get("RANK", "0") != "0":
            sys.exit(2)  # the main process reports it
        typer.secho(f"sad: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
