"""The `sad` command, with one module per subcommand. Prints one message and exits with code 2 for bad input."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sad import interrupts, quiet
from sad.cli import failures
from sad.errors import LostProcessError, printable

COMMANDS = (
    "demo", "collect", "inspect", "plan", "cache", "cache import", "train", "eval", "study", "study prepare",
    "study run-cell", "bench", "tune", "doctor",
)  # fmt: skip


class Commands(TyperGroup):
    """Commands, of which some have names of two words. `sad cache` and `sad cache import` are two of them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns the command that the first one or two arguments name, and the other arguments."""
        pair = " ".join(args[:2])
        return super().resolve_command(ctx, [pair, *args[2:]] if pair in self.commands else args)


app = typer.Typer(
    name="sad",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name in COMMANDS:
    _module = importlib.import_module("sad.cli." + _name.replace(" ", "_").replace("-", "_"))
    app.command(_name, context_settings=getattr(_module, "CONTEXT_SETTINGS", None))(_module.command)


def _show_version(wanted: bool) -> None:
    if wanted:
        from sad import __version__

        typer.echo(f"sad {__version__}")
        raise typer.Exit


@app.callback()
def _general(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version, and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Structured Agent Distillation: distill large ReAct-style agents into small ones."""


def main() -> None:
    """Runs the `sad` command. With SAD_TRACEBACK=1 an error shows where it was raised."""
    quiet.drop_irrelevant_messages()
    with interrupts.handled():
        try:
            app()
        except Exception as error:  # `describe` knows which ones have a message; the others are raised again
            message = failures.describe(error)
            if message is None or os.environ.get("SAD_TRACEBACK") == "1":
                raise
            if isinstance(error, LostProcessError) and os.environ.get("RANK", "0") != "0":
                sys.exit(2)  # the main process reports it
            typer.secho(f"sad: {printable(message)}", fg=typer.colors.RED, err=True)
            sys.exit(2)


if __name__ == "__main__":
    main()
