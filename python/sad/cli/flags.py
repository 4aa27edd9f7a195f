"""Makes the flags of a command from the dataclass that declares its options."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

Options = TypeVar("Options")


def takes(options: type[Options]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that makes a typer command with the flags of a dataclass.

    The command receives an instance of the dataclass as its first argument, and a `typer.Context` as its second argument
    if it declares one. The docstring of the command is its help text.

    Args:
        options: A dataclass whose fields are declared with `sad.options.option`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        with_context = len(inspect.signature(command).parameters) > 1
        context = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = (values.pop("context"),) if with_context else ()
            command(options(**values), *given)

        run.__signature__ = inspect.Signature(parameters(options) + (context if with_context else []))
        run.__doc__ = one_line_paragraphs(command.__doc__ or "")
        del run.__wrapped__  # otherwise typer reads the signature of the wrapped function
        run.__annotations__ = {name: x.annotation for name, x in run.__signature__.parameters.items()}
        return run

    return decorate


def one_line_paragraphs(text: str) -> str:
    """Returns a docstring with one line per paragraph. Typer keeps the line ends of a docstring in its help."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))


def parameters(options: type) -> list[inspect.Parameter]:
    """Returns one keyword parameter per field of the dataclass, annotated for typer."""
    hints = typing.get_type_hints(options)
    return [_parameter(field, hints[field.name]) for field in dataclasses.fields(options) if field.init]


def _parameter(field: dataclasses.Field, hint: Any) -> inspect.Parameter:
    metadata = field.metadata
    flags = metadata["flag"].split() if metadata.get("flag") else []  # "--format -f" declares two names
    shown = {"help": metadata["help"], "rich_help_panel": metadata.get("group")}
    info = typer.Argument(**shown) if metadata.get("positional") else typer.Option(*flags, **shown)
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is dataclasses.MISSING:
        default = inspect.Parameter.empty
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, info])
