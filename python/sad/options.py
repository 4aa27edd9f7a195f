"""How a command's options are declared: once, as the fields of a dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

REQUIRED = dataclasses.MISSING


def option(
    default: Any = REQUIRED, *, help: str, group: str | None = None, flag: str | None = None, positional: bool = False
) -> Any:
    """A dataclass field that is also a command-line flag.

    The field's name gives the flag (`max_length` -> `--max-length`) and the YAML key, its annotation gives the type.

    Args:
        default: The value if the flag is absent. A list or dict is copied for each instance. Without it the option is required.
        help: One sentence for `--help`, with the unit and the meaning of the default.
        group: The heading in `--help` under which the flag is listed.
        flag: The flag in typer's notation, if it differs from the name, such as `"--resume"` for a switch that has no
            `--no-resume`.
        positional: Whether it is an argument without a flag.

    Returns:
        A `dataclasses.field` whose metadata holds `help` (as `transformers.HfArgumentParser` reads it) and the rest.
    """
    metadata = {"help": help, "group": group, "flag": flag, "positional": positional}
    factory: Callable[[], Any] | None = None
    if isinstance(default, (list, dict)):
        value = default
        factory = value.copy
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
