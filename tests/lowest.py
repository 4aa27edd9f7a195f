"""Prints the lower bounds in pyproject.toml as a constraints file for pip.

    python -m tests.lowest lora endpoint                  # the bounds of the package and of two extras
    python -m tests.lowest --torch 2.13.0 lora            # with another version of PyTorch

`make test-lowest` installs these versions in an environment of its own and runs a part of the tests there.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

BOUND = re.compile(r"\s*([\w.-]+)\s*>=\s*([\w.]+)")


def lower_bounds(text: str, extras: list[str]) -> list[str]:
    """Returns one line `name==version` per requirement with a lower bound, without duplicates.

    Args:
        text: The content of pyproject.toml.
        extras: Names of the optional dependencies to include.

    Raises:
        ValueError: An extra does not exist, or a requirement of the package has no lower bound.
    """
    import tomllib

    project = tomllib.loads(text)["project"]
    if unknown := set(extras) - project["optional-dependencies"].keys():
        raise ValueError(f"extras: expected names in pyproject.toml, got {', '.join(sorted(unknown))}")
    found: dict[str, str] = {}
    for requirement in [*project["dependencies"], *(x for name in extras for x in project["optional-dependencies"][name])]:
        match = BOUND.match(requirement)
        if match is None and "==" not in requirement:
            raise ValueError(f"pyproject.toml: expected a lower bound such as name>=1.0, got {requirement!r}. Add one.")
        if match is not None:
            found.setdefault(match[1], match[2])
    return [f"{name}=={version}" for name, version in found.items()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.lowest")
    parser.add_argument("--torch", help="version of PyTorch; default: its lower bound")
    parser.add_argument("extras", nargs="*", help="optional dependencies to include")
    options = parser.parse_args()
    pyproject = Path(__file__).resolve().parents[1] / "pyproject.toml"
    lines = lower_bounds(pyproject.read_text(encoding="utf-8"), options.extras)
    if options.torch:
        lines = [f"torch=={options.torch}" if line.startswith("torch==") else line for line in lines]
    print("\n".join(lines))
