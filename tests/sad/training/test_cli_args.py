"""Flags and YAML accept the same names and values. Flags override YAML, and unknown names are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sad.errors import InputError
from sad.training.cli_args import as_yaml, field_help, make_config, parse_flags, read_yaml
from sad.training.config import RECIPE

OPTIONS = ("teacher", "data")


def test_flags_accept_both_spellings_and_return_only_given_values():
    given = parse_flags(["--learning-rate", "1e-4", "--lambda_act=2", "--bf16", "--no-curriculum", "--max-steps", "-1"], ())
    assert given == {"learning_rate": 1e-4, "lambda_act": 2.0, "bf16": True, "curriculum": False, "max_steps": -1}
    assert parse_flags([], ()) == {}


def test_yaml_reads_values_as_flags_do(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "teacher: t\nlearning_rate: 2e-5\nmax_steps: -1\nbf16: true\nlr_scheduler_type: linear\npad_to_multiple_of: null\n"
        "lr_scheduler_kwargs: {num_cycles: 1}\nreport_to: none\nlogging_steps: 0.1\n"
    )
    given = read_yaml(path, OPTIONS)
    assert given == {
        "teacher": "t",
        "learning_rate": 2e-5,  # a string in YAML
        "max_steps": -1,
        "bf16": True,
        "lr_scheduler_type": "linear",
        "pad_to_multiple_of": None,
        "lr_scheduler_kwargs": {"num_cycles": 1},
        "report_to": "none",
        "logging_steps": 0.1,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lamda_act: 1\n", "lambda_act"),
        ("max_steps: many\n", "max_steps"),
        ("- a\n", "name: value"),
        ("a: [\n", "YAML"),
        ("output_dir: x\n", "out"),
    ],
)
def test_yaml_refused(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_yaml(path, OPTIONS)
    assert "run.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lamda-act", "1"], "lambda_act"),
        (["--learning-rate", "fast"], "learning_rate"),
        (["--max-steps"], "max_steps"),
        (["stray"], "stray"),
        (["--output-dir", "x"], "out"),
        (["--teachr", "x"], "teacher"),
    ],
)
def test_flags_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        parse_flags(arguments, OPTIONS)


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_yaml(tmp_path / "none.yaml", OPTIONS)


def test_values_transformers_refuses_become_one_message(tmp_path):
    with pytest.raises(InputError, match="config"):
        make_config({"eval_strategy": "sometimes", "use_cpu": True}, tmp_path)


def test_a_written_config_reads_back_to_the_same_training(tmp_path):
    path = tmp_path / "config.yaml"
    asked = {"learning_rate": 3e-4, "lambda_act": 0.5, "use_cpu": True, "eval_strategy": "steps", "eval_steps": 7}
    config = make_config(asked, tmp_path / "a")
    path.write_text(yaml.safe_dump(as_yaml(config, asked)))
    again = make_config(read_yaml(path, OPTIONS), tmp_path / "b")
    assert again.eval_steps == 7 and again.use_cpu
    different = {name for name, x in config.to_dict().items() if again.to_dict()[name] != x}
    assert different <= {"output_dir", "run_name", "logging_dir"}
    assert set(RECIPE) <= set(yaml.safe_load(path.read_text()))


def test_every_field_is_in_the_help():
    text = field_help()
    assert "--lambda_reason" in text and "--gradient_accumulation_steps" in text and "--curriculum_end" in text


def test_the_example_file_is_the_paper_s_recipe(tmp_path):
    options = {"teacher", "student", "data", "format", "teacher_dtype"}
    given = read_yaml(Path(__file__).parents[3] / "examples" / "paper" / "train.yaml", options)
    config = make_config({name: x for name, x in given.items() if name not in options and name != "bf16"}, tmp_path)
    assert options <= set(given)
    assert (config.learning_rate, config.max_steps, config.max_length, config.max_grad_norm) == (2e-5, 20000, 512, 1.0)
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 64
