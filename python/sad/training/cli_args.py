"""Settings of a run from a YAML file and from flags: one set of names, one way to read a value, flags win."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from sad.errors import InputError
from sad.training.config import SADConfig

_FIELDS = {item.name for item in dataclasses.fields(SADConfig) if item.init} - {"output_dir"}
# What `config.yaml` of a run always names, so that a later version's defaults cannot change it.
RECIPE = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "num_train_epochs", "max_steps",
    "per_device_train_batch_size", "gradient_accumulation_steps", "seed",
    *(item.name for item in dataclasses.fields(SADConfig) if item.name in SADConfig.__annotations__ and item.init),
)  # fmt: skip


_UNSAID = object()  # not argparse.SUPPRESS, which `set_defaults` would take for a string to convert


class _Parser(HfArgumentParser):
    """Every field of `SADConfig` as `--name value`, with `-` or `_`; gives back only what was said."""

    def __init__(self, where: str) -> None:
        super().__init__(SADConfig, add_help=False, allow_abbrev=False, prog="sad train")
        self._where = where
        self.set_defaults(**{item.name: _UNSAID for item in dataclasses.fields(SADConfig) if item.init})

    def said(self, arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """The fields that were given, and the arguments that are none."""
        given, rest = self.parse_known_args(list(arguments))
        return {name: value for name, value in vars(given).items() if value is not _UNSAID}, rest

    def error(self, message: str) -> None:
        raise InputError(self._where, "values of the fields' types", message, "See `sad train --fields` for all fields.")


def field_help() -> str:
    """All fields of `SADConfig` with their help, for a terminal."""
    return HfArgumentParser(SADConfig, add_help=False, prog="sad train", usage=argparse.SUPPRESS).format_help()


def _unknown(where: str, name: str, known: Iterable[str]) -> InputError:
    close = difflib.get_close_matches(name, list(known), n=3)
    remedy = f"Did you mean {' or '.join(close)}?" if close else "See `sad train --fields` for all fields."
    return InputError(where, "a name among the options and fields of a run", repr(name), remedy)


def parse_flags(arguments: Sequence[str], options: Iterable[str]) -> dict[str, Any]:
    """Fields given as flags.

    Args:
        arguments: `["--learning-rate", "1e-4", "--bf16"]`.
        options: Names that are options besides the fields, for the message about a misspelt one.

    Returns:
        Field name to value, of those given.

    Raises:
        InputError: A flag is no field or its value is not of the field's type.
    """
    given, rest = _Parser("flags").said(arguments)
    if rest:
        name = rest[0].lstrip("-").split("=")[0].replace("-", "_")
        raise _unknown(f"flag {rest[0]}", name, [*_FIELDS, *options])
    return _without_output_dir(given, "flags")


def read_yaml(path: str | Path, options: Iterable[str]) -> dict[str, Any]:
    """Settings from a YAML file of `name: value` lines.

    Strings and numbers of fields are read as a flag's value is; so `2e-5`, which YAML takes for a string, is a number.

    Args:
        path: The file.
        options: Names that may stand there besides the fields of `SADConfig`.

    Raises:
        InputError: The file is missing or no mapping, or holds an unknown name or a value of another type.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise InputError("config", "a YAML file", f"{str(path)!r}: no such file", "Check the path.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(str(path), "YAML", str(error), "Write one `name: value` per line.") from None
    if not isinstance(content, dict):
        raise InputError(str(path), "`name: value` lines", type(content).__name__, "See examples/train_gpt2.yaml.")
    options = set(options)
    settings: dict[str, Any] = {}
    for name, value in content.items():
        if name not in options and name not in _FIELDS and name != "output_dir":
            raise _unknown(str(path), str(name), [*_FIELDS, *options])
        if name in options or value is None or isinstance(value, (dict, list)):
            settings[name] = value
        else:
            settings |= _Parser(f"{path}, {name}").said([f"--{name}={value}"])[0]
    return _without_output_dir(settings, str(path))


def _without_output_dir(settings: dict[str, Any], where: str) -> dict[str, Any]:
    if "output_dir" in settings:
        raise InputError(where, "the run's folder as `out`", "output_dir", "Write `out` instead.")
    return settings


def make_config(settings: Mapping[str, Any], out: str | Path) -> SADConfig:
    """`SADConfig` from field values.

    Raises:
        InputError: A value is out of range; also where transformers says so in its own words.
    """
    try:
        return SADConfig(output_dir=str(out), **settings)
    except InputError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        remedy = "See `sad train --fields`."
        raise InputError("settings", "values that transformers.TrainingArguments takes", str(error), remedy) from error


def as_yaml(config: SADConfig, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe that is in force and everything else that was asked for, in plain values."""
    plain = config.to_dict()
    return {name: plain[name] for name in RECIPE} | {name: x for name, x in asked.items() if name not in RECIPE}
