"""Declares the options of a command once, as the fields of a dataclass."""

from __future__ import annotations

import dataclasses
from typing import Any

REQUIRED = dataclasses.MISSING


def option(
    default: Any = REQUIRED, *, help: str, group: str | None = None, flag: str | None = None, positional: bool = False
) -> Any:
    """Declares a dataclass field that is also a command-line flag.

    The name of the field is the YAML key and, with hyphens, the flag (`max_length` -> `--max-length`). The annotation of
    the field is the type of the option.

    Args:
        default: The value if the flag is absent. A list or dict is copied for each instance. The option is required if no
            default is passed.
        help: One sentence for `--help`, with the unit and the meaning of the default.
        group: The heading under which `--help` shows the flag.
        flag: The flags in typer's notation, separated by blanks, if they differ from the name: `"--resume"` declares a
            switch without `--no-resume`, `"--format -f"` adds a short form.
        positional: Whether the option is a positional argument without a flag.

    Returns:
        A `dataclasses.field` whose metadata contains `help` and the other arguments that were set. With `help` alone,
        `transformers.HfArgumentParser` can read the field too.
    """
    extras = {"group": group, "flag": flag, "positional": positional}
    metadata = {"help": help} | {name: value for name, value in extras.items() if value}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
