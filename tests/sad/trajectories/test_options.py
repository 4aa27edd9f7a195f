"""The encoding options: the same in all commands that encode trajectories, checked and applied by one function."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import sad
from sad.cli.inspect import InspectOptions
from sad.teacher_cache.import_options import ImportOptions
from sad.teacher_cache.options import CacheOptions
from sad.training.cli_args import RunOptions
from sad.trajectories.command_options import encoding_keywords
from sad.trajectories.options import ENCODING_OPTIONS, check_encoding, encoding_option

REQUIRED = {
    InspectOptions: {"file": Path("f")},
    CacheOptions: {"teacher": "t", "data": ["f"], "out": "c"},
    ImportOptions: {"file": ["p"], "data": ["f"], "tokenizer": "t", "model": "m", "out": "c"},
    RunOptions: {"teacher": "t", "student": "s", "data": ["f"]},
}
commands = pytest.mark.parametrize("options", REQUIRED, ids=lambda options: options.__name__)


def make(options: type, **values):
    made = options(**REQUIRED[options], **values)
    if options is RunOptions:  # a YAML file can change the fields, so that it is checked later
        made.check()
    return made


@commands
def test_every_command_has_every_option(options):
    fields = {field.name: field for field in dataclasses.fields(options)}
    for name in ENCODING_OPTIONS:
        declared = encoding_option(name)
        differs = options is InspectOptions and name == "on_error"  # it shows what a training refuses
        assert fields[name].default == ("skip" if differs else declared.default), name
        assert differs or fields[name].metadata["help"] == declared.metadata["help"], name


@commands
@pytest.mark.parametrize(
    ("name", "wrong", "expected"),
    [
        ("long", "whole", "one of truncate, window, turns"),
        ("long_context", 1.0, "a share of at least 0 and below 1"),
        ("long_head", -1, "a number of tokens >= 0"),
        ("unroll", "no", "one of auto, never, always"),
        ("kept_ids", "no", "one of auto, always, never"),
        ("on_error", "no", "stop or skip"),
    ],
)
def test_every_command_refuses_a_wrong_value(options, name, wrong, expected):
    make(options)
    with pytest.raises(sad.InputError, match=f"^{name}: expected {expected}"):
        make(options, **{name: wrong})


@commands
@pytest.mark.parametrize(
    ("name", "wrong", "expected"),
    [
        ("format", "nowhere", "--format: expected one of alfworld, chat"),
        ("source", "nowhere", "source: expected one of auto, "),
        ("chat_template", "nowhere.jinja", "chat_template: expected a file with a chat template"),
        ("long_head", 90, "long_head: expected long_head and the context together below max_length 80"),
    ],
)
def test_one_function_refuses_names_and_files(options, name, wrong, expected):
    more = {"long": "window", "max_length": 200} if options in (CacheOptions, ImportOptions) else {"long": "window"}
    made = make(options, **{name: wrong}, **more)
    with pytest.raises(sad.InputError, match=expected):
        encoding_keywords(made, 80)


def test_the_function_applies_all_options(make_tokenizer, tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    (tmp_path / "mine.yaml").write_text("reason: 'Plan:'\nact: 'Do:'\n")
    chosen = {
        "long": "turns",
        "long_context": 0.5,
        "long_head": 2,
        "unroll": "never",
        "kept_ids": "never",
        "on_error": "stop",
    }
    files = {"format": str(tmp_path / "mine.yaml"), "chat_template": str(tmp_path / "t.jinja")}
    tokenizer = make_tokenizer(chat_template="old")
    options = InspectOptions(Path("f"), **chosen, **files)
    assert encoding_keywords(options, 80)["format"].name == "mine" and tokenizer.chat_template == "old"
    found = encoding_keywords(options, 80, tokenizer)
    assert {**found, "format": found["format"].name} == {**chosen, "format": "mine", "max_length": 80}
    assert tokenizer.chat_template == "{{ messages }}"
    encoding_keywords(InspectOptions(Path("f")), None, tokenizer)
    assert tokenizer.chat_template == "{{ messages }}"  # without the option it stays


def test_options_that_lack_a_name_are_an_error_of_the_program():
    options = dataclasses.make_dataclass("Short", [(name, str) for name in ENCODING_OPTIONS if name != "unroll"])
    with pytest.raises(TypeError, match="Short lacks the encoding options unroll"):
        check_encoding(options(*ENCODING_OPTIONS[1:]), None)
