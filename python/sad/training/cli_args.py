"""The options of `sad train`, from flags and from a YAML file. Functions import transformers, the module does not."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sad.errors import InputError
from sad.options import option
from sad.training.fields import GROUPS
from sad.training.rollout_options import RolloutOptions
from sad.trajectories.options import check_encoding, encoding_option

if TYPE_CHECKING:
    from sad.training.config import SADConfig

_TYPE_NAMES = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}
_ABSENT = object()  # not argparse.SUPPRESS: `set_defaults` would convert that string


# Names that other programs use -> the field.
_OTHER_NAMES = {
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "steps": "max_steps",
    "grad_accum": "gradient_accumulation_steps",
    "accumulation_steps": "gradient_accumulation_steps",
    "warmup": "warmup_steps",
    "gradient_checkpointing": "activation_checkpointing",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "seq_length": "max_length",
    "output": "out",
    "dataset": "data",
    "train_data": "data",
    "model": "student",
}
_LISTS = ("data", "eval_data", "rollout_option")


@dataclass
class _ModelsAndData:
    """The models and the data of a run."""

    teacher: str | None = option(
        None,
        group="Teacher",
        help="Folder or Hub name of the teacher. Required without --teacher-cache, unless --ce-weight is 1.",
    )
    teacher_cache: str | None = option(
        None, group="Teacher", help="Folder or URL of a teacher cache from sad cache, instead of --teacher."
    )
    teacher_dtype: str = option("auto", group="Teacher", help="auto (as saved), float32, bfloat16 or float16.")
    teacher_quantization: str | None = option(
        None, group="Teacher", help="8bit or 4bit: quantize the linear layers with bitsandbytes. Default: no quantization."
    )
    student: str | None = option(None, group="Student", help="Folder or Hub name of the student. Required.")
    student_dtype: str = option(
        "float32", group="Student", help="Dtype of the weights. AdamW loses updates in 16 bits; use --bf16 for speed."
    )
    from_config: bool = option(False, group="Student", help="Start the student from random weights.")
    lora_rank: int | None = option(
        None, group="Student", help="Train LoRA adapters of this rank on a frozen student. Default: train all weights."
    )
    lora_alpha: float | None = option(
        None, group="Student", help="Scale of the adapters times the rank. Default: twice the rank."
    )
    lora_targets: str | None = option(
        None, group="Student", help="Layers with adapters, such as q_proj,v_proj. Default: all linear layers but the head."
    )
    trust_remote_code: bool = option(
        False,
        flag="--trust-remote-code",
        group="Student",
        help="Run Python code in model folders whose config names any. Default: refuse such folders.",
    )
    data: list[str] = option(
        [], group="Data", help="Trajectories to train on: a file, a folder or a pattern (*). May be repeated. Required."
    )
    eval_data: list[str] = option(
        [],
        group="Data",
        help="Trajectories to evaluate on, once per epoch by default. May be repeated; NAME=FILE names a set.",
    )
    format: str | None = encoding_option("format", "Data")
    source: str = encoding_option("source", "Data")
    long: str = encoding_option("long", "Data")
    long_context: float = encoding_option("long_context", "Data")
    long_head: int = encoding_option("long_head", "Data")
    unroll: str = encoding_option("unroll", "Data")
    kept_ids: str = encoding_option("kept_ids", "Data")
    chat_template: str | None = encoding_option("chat_template", "Data")
    on_error: str = encoding_option("on_error", "Data")


@dataclass
class RunOptions(RolloutOptions, _ModelsAndData):
    """The models, the data and the rollouts of a run. The other options are fields of `sad.SADConfig`."""

    def check(self, needs_teacher: bool = True) -> None:
        """Checks the values without touching any file.

        Args:
            needs_teacher: Whether the loss needs a teacher or a teacher cache.

        Raises:
            InputError: A required path is missing, a value has the wrong type, or options contradict each other.
        """
        from sad import models

        for name in _LISTS:
            value = getattr(self, name)
            if isinstance(value, str):
                setattr(self, name, [value])
            elif not isinstance(value, list) or not all(isinstance(path, str) for path in value):
                expected = "name=value or a list of them" if name == "rollout_option" else "a path or a list of paths"
                raise InputError(name, expected, repr(value), "Fix the value.")
        hints = typing.get_type_hints(RunOptions)
        for item in dataclasses.fields(RunOptions):
            value = getattr(self, item.name)
            optional = item.name == "teacher" and (self.teacher_cache is not None or not needs_teacher)
            if value in (None, []) and item.name in ("teacher", "student", "data") and not optional:
                remedy = f"Pass --{item.name}, or write `{item.name}:` in the file of --config."
                raise InputError(item.name, "a path", "nothing", remedy)
            if item.name in _LISTS:
                continue
            [kind] = {*typing.get_args(hints[item.name]), hints[item.name]} & _TYPE_NAMES.keys()
            accepted = (int, float) if kind is float else kind
            if value is not None and (not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool)):
                raise InputError(item.name, _TYPE_NAMES[kind], repr(value), "Fix the value.")
        self.check_rollouts(self.teacher)
        beside = self.teacher or self.teacher_quantization
        if self.teacher_cache is not None and beside is not None:
            remedy = "Pass either a teacher or a teacher cache."
            raise InputError("teacher_cache", "no teacher and no teacher_quantization beside it", repr(beside), remedy)
        for name in ("teacher_dtype", "student_dtype"):
            models.check_dtype(name, getattr(self, name))
        models.check_quantization(self.teacher_quantization)
        check_encoding(self, None)  # max_length is a field of the config
        models.check_lora(self.lora_rank, self.lora_alpha, self.lora_targets)
        if self.lora_rank is not None and self.from_config:
            remedy = "Save that student first: the run saves only the adapters, so its random weights would be lost."
            raise InputError("from_config", "false with lora_rank", "true", remedy)


@dataclass
class TrainOptions(RunOptions):
    """The options of `sad train`."""

    out: str | None = option(None, group="Run", help="Output folder of the run, new or empty. Required.")
    config: str | None = option(None, group="Run", help="YAML file with options and fields. Flags override it.")
    resume: bool = option(
        False, flag="--resume", group="Run", help="Continue the run in --out from its last checkpoint, with its own config."
    )
    fields: bool = option(False, flag="--fields", group="Run", help="List all fields of SADConfig, and exit.")
    help: bool = option(False, flag="--help", group="Run", help="Show this message, and exit.")


NAMES = tuple(item.name for item in dataclasses.fields(RunOptions))  # of the options that a YAML file may hold besides `out`


def documented_options() -> type:
    """Returns a dataclass with the options of `sad train` and SAD's own fields of `SADConfig`, for `--help`."""
    own = []
    for heading, group in GROUPS.items():
        hints = typing.get_type_hints(group)
        for item in dataclasses.fields(group):
            described = option(item.default, help=item.metadata["help"], group=heading)
            own.append((item.name, hints[item.name], described))
    return dataclasses.make_dataclass("DocumentedOptions", own, bases=(TrainOptions,))


def field_help() -> str:
    """Returns the help of all fields of `SADConfig` for a terminal, SAD's own fields first."""
    from transformers import HfArgumentParser

    from sad.training.config import OWN_FIELDS, SADConfig

    hints = typing.get_type_hints(SADConfig)
    parts: dict[bool, list] = {True: [], False: []}
    for item in dataclasses.fields(SADConfig):
        if item.init and item.name != "output_dir":
            copied = dataclasses.field(metadata=item.metadata, **_default(item))
            parts[item.name in OWN_FIELDS].append((item.name, hints[item.name], copied))
    texts = []
    for title, own in (("fields of SAD", True), ("fields of transformers.TrainingArguments", False)):
        group = dataclasses.make_dataclass("Fields", parts[own])
        group._argument_group_name = title
        parser = HfArgumentParser(group, add_help=False, prog="sad train", usage=argparse.SUPPRESS)
        for action in parser._actions:
            if action.dest.startswith("no_") or any(flag.startswith("--no_") for flag in action.option_strings):
                action.help = f"The same as --{action.dest.removeprefix('no_')} false."
        texts.append(parser.format_help())
    return "\n".join(texts)


def parse_flags(arguments: Sequence[str], options: Iterable[str]) -> dict[str, Any]:
    """Parses flags that are fields of `SADConfig`.

    Args:
        arguments: Such as `["--learning-rate", "1e-4", "--bf16"]`. Names may use `-` or `_`.
        options: Names of the other options, which the message about an unknown flag suggests too.

    Returns:
        The values of the fields that were given.

    Raises:
        InputError: A flag is not a field, or its value does not have the field's type.
    """
    given, rest = _parse(arguments, "flags")
    if rest:
        name = rest[0].lstrip("-").split("=")[0].replace("-", "_")
        raise _unknown(f"flag {rest[0]}", name, options)
    return _without_output_dir(given, "flags")


def read_yaml(path: str | Path, options: Iterable[str]) -> dict[str, Any]:
    """Reads options and fields of `SADConfig` from a YAML file of `name: value` lines.

    Strings and numbers of fields are parsed like flags. So `2e-5`, which is a string in YAML, becomes a number.

    Args:
        path: The file.
        options: Names that the file may hold besides the fields.

    Raises:
        InputError: The file is missing or not a mapping, or it holds an unknown name or a value of the wrong type.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise InputError("config", "a YAML file", f"{str(path)!r}: no such file", "Check the path.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(str(path), "YAML", str(error), "Write one `name: value` per line.") from None
    if not isinstance(content, dict):
        raise InputError(str(path), "`name: value` lines", type(content).__name__, "See examples/paper/train.yaml.")
    options, known = set(options), _field_names()
    values: dict[str, Any] = {}
    for name, value in content.items():
        if name not in options and name not in known and name != "output_dir":
            raise _unknown(str(path), str(name), options)
        if name in options or value is None or isinstance(value, (dict, list)):
            values[name] = value
        else:
            values |= _parse([f"--{name}={value}"], f"{path}, {name}")[0]
    return _without_output_dir(values, str(path))


def make_config(values: Mapping[str, Any], out: str | Path) -> SADConfig:
    """Builds the `SADConfig` of a run.

    Args:
        values: Values of its fields.
        out: The output folder.

    Raises:
        InputError: A value is out of range. Errors of transformers are converted.
    """
    from sad.training.config import SADConfig

    try:
        return SADConfig(output_dir=str(out), **values)
    except InputError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        remedy = "See `sad train --fields`."
        raise InputError("config", "values that transformers.TrainingArguments accepts", str(error), remedy) from error


def as_yaml(config: SADConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that define the training, with their values in `config`, and all others that were given.

    Tokens are left out.
    """
    from sad.training.config import RECIPE

    plain = config.to_dict()
    others = {name: x for name, x in given.items() if name not in RECIPE and not is_secret(name)}
    return {name: plain[name] for name in RECIPE} | others


def is_secret(name: str) -> bool:
    """Whether a field holds a token, which no record of a run may show."""
    return name.endswith("_token")


def _parse(arguments: Sequence[str], where: str) -> tuple[dict[str, Any], list[str]]:
    """Returns the fields of `SADConfig` that `arguments` hold, and the arguments that are not fields."""
    from transformers import HfArgumentParser

    from sad.training.config import SADConfig

    class Parser(HfArgumentParser):
        def error(self, message: str) -> None:
            raise InputError(where, "values of the fields' types", message, "See `sad train --fields` for all fields.")

    parser = Parser(SADConfig, add_help=False, allow_abbrev=False, prog="sad train")
    parser.set_defaults(**{item.name: _ABSENT for item in dataclasses.fields(SADConfig) if item.init})
    given, rest = parser.parse_known_args(list(arguments))
    return {name: value for name, value in vars(given).items() if value is not _ABSENT}, rest


def _field_names() -> set[str]:
    from sad.training.config import SADConfig

    return {item.name for item in dataclasses.fields(SADConfig) if item.init} - {"output_dir"}


def _default(item: dataclasses.Field) -> dict[str, Any]:
    if item.default_factory is not dataclasses.MISSING:
        return {"default_factory": item.default_factory}
    return {} if item.default is dataclasses.MISSING else {"default": item.default}


def _unknown(where: str, name: str, options: Iterable[str]) -> InputError:
    known = {*_field_names(), *options}
    meant = _OTHER_NAMES.get(name)
    close = [meant] if meant in known else difflib.get_close_matches(name, known, n=3)
    remedy = f"Did you mean {' or '.join(close)}?" if close else "See `sad train --fields` for all fields."
    return InputError(where, "the name of an option or a field", repr(name), remedy)


def _without_output_dir(values: dict[str, Any], where: str) -> dict[str, Any]:
    if "output_dir" in values:
        raise InputError(where, "the output folder as `out`", "output_dir", "Write `out` instead.")
    return values
