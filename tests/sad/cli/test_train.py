"""`sad train`: the run folder, resuming, the help, and invalid input with exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from sad.cli.main import main
from sad.errors import InputError
from sad.training.cli_args import field_help, parse_flags
from sad.trajectories.trajectory import Trajectory, write_jsonl
from tests.sad.training import tiny

FAST = [
    "--use-cpu", "--disable-tqdm", "true", "--max-length", "96", "--per-device-train-batch-size", "4",
    "--logging-steps", "1", "--gradient-accumulation-steps", "1", "--max-steps", "4", "--learning-rate", "1e-2",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Returns a folder with a teacher, a student, a student with another tokenizer, and trajectories, one of them empty."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, seed, sharpness in (("teacher", 1, 30.0), ("student", 2, 1.0), ("stranger", 2, 1.0)):
        tiny.model(seed=seed, sharpness=sharpness).save_pretrained(folder / name)
        tiny.tokenizer(290 if name == "stranger" else 300).save_pretrained(folder / name)
    tiny.model().config.save_pretrained(folder / "config_only")
    write_jsonl(folder / "data.jsonl", [*tiny.trajectories(12), Trajectory(id="silent", text="You see nothing.\n")])
    return folder


@pytest.fixture
def sad(monkeypatch, capsys):
    """Returns a function that runs `sad ...` and returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sad", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        return code, *capsys.readouterr()

    return run


def inputs(folder: Path, **replaced: object) -> list[object]:
    paths = {"teacher": folder / "teacher", "student": folder / "student", "data": folder / "data.jsonl", **replaced}
    return [part for name, path in paths.items() if path is not None for part in (f"--{name}", path)]


def test_several_files_and_named_evaluation_sets(sad, folder, tmp_path):
    """Every --data counts, and each named set has its own metrics."""
    more = [part for name in ("one", "two") for part in ("--data", tmp_path / f"{name}.jsonl")]
    for seed, path in enumerate(more[1::2]):
        write_jsonl(path, tiny.trajectories(5, seed=seed))
    sets = ["--eval-data", f"first={more[1]}", "--eval-data", f"second={more[3]}", "--eval-strategy", "steps"]
    out = tmp_path / "run"
    code, stdout, stderr = sad("train", *inputs(folder), *more, *sets, "--eval-steps", "4", "--out", out, *FAST)
    assert code == 0, stderr
    assert "read 23 trajectories" in stdout
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"eval_first_loss", "eval_second_loss"} <= {name for line in metrics for name in line}
    assert yaml.safe_load((out / "config.yaml").read_text())["data"] == [str(folder / "data.jsonl"), *map(str, more[1::2])]


def test_imitation_needs_no_teacher(sad, folder, tmp_path):
    imitation = ["--ce-weight", "1", "--out", tmp_path / "run", *FAST]
    assert "curriculum_gamma: expected 0 without a teacher" in sad("train", *inputs(folder, teacher=None), *imitation)[2]
    assert not (tmp_path / "run").exists()
    code, stdout, stderr = sad("train", *inputs(folder, teacher=None), *imitation, "--curriculum-gamma", "0")
    assert code == 0, stderr
    assert "student: GPT2LMHeadModel" in stdout and "teacher:" not in stdout


def test_a_run_leaves_config_records_metrics_and_a_model(sad, folder, tmp_path):
    out = tmp_path / "run"
    code, stdout, stderr = sad("train", *inputs(folder), "--eval-data", folder / "data.jsonl", "--out", out, *FAST)
    assert code == 0, stderr
    assert "read 13 trajectories" in stdout and "1 without a supervised token dropped" in stdout
    card = (out / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "# student, distilled" in card
    assert "| teacher | teacher |" in card and "| training examples | 12 |" in card and "| last log |" in card
    assert "    sad train --teacher teacher --student student --data data.jsonl" in card and "--max-steps 4" in card
    assert str(folder) not in card and str(tmp_path) not in card  # no path of the machine
    record = json.loads((out / "run.json").read_text())
    cut = sum(len(example["input_ids"]) > 96 for example in tiny.examples(12, max_length=None))
    assert cut > 0
    whole, kept = (
        sum(kind in (1, 2) for example in tiny.examples(12, max_length=length) for kind in example["span_ids"])
        for length in (None, 96)
    )
    lost = {"supervised": whole, "supervised_cut": whole - kept}
    assert record["data"] == {"read": 13, "used": 12, "truncated": cut, "empty": 1, "unparsed": 1, "refused": 0, **lost}
    assert f"warning: max_length cuts {whole - kept} of {whole} supervised tokens" in stdout
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [(log["loss_reason"], log["loss_act"]) for log in metrics if "loss" in log]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert [log for log in metrics if "eval_loss_act" in log]
    assert yaml.safe_load((out / "config.yaml").read_text())["learning_rate"] == 1e-2
    assert len(json.loads((out / "curriculum.json").read_text())["teacher_entropy"]) == 12
    trained, before = (AutoModelForCausalLM.from_pretrained(path) for path in (out / "model", folder / "student"))
    assert not torch.equal(trained.lm_head.weight, before.lm_head.weight)
    assert AutoTokenizer.from_pretrained(out / "model").get_vocab() == tiny.tokenizer().get_vocab()


def test_flags_override_the_file_and_a_run_s_config_repeats_it(sad, folder, tmp_path):
    file = tmp_path / "train.yaml"
    paths = {name: str(folder / name) for name in ("teacher", "student")} | {"data": str(folder / "data.jsonl")}
    file.write_text(yaml.safe_dump({**paths, "out": str(tmp_path / "one"), "learning_rate": "5e-3", "use_cpu": True}))
    flags = [flag for flag in FAST if flag not in ("--learning-rate", "1e-2")]
    code, _, stderr = sad("train", "--config", file, *flags, "--lambda-act", "2")
    assert code == 0, stderr
    kept = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    assert (kept["learning_rate"], kept["lambda_act"], kept["max_steps"]) == (5e-3, 2.0, 4)
    code, _, stderr = sad("train", "--config", tmp_path / "one" / "config.yaml", "--out", tmp_path / "two")
    assert code == 0, stderr
    first, second = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second


def test_resume_continues_to_the_same_weights(sad, folder, tmp_path):
    save = ["--save-steps", "2"]
    assert sad("train", *inputs(folder), "--out", tmp_path / "whole", *FAST, *save)[0] == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "model")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")  # stopped after step 3, so the metrics are ahead of the checkpoint
    code, stdout, stderr = sad("train", "--resume", "--out", tmp_path / "cut")
    assert code == 0, stderr
    assert "checkpoint-2" in stdout
    for file in ("model/model.safetensors", "curriculum.json"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    steps = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [log["step"] for log in steps if "loss" in log] == [1, 2, 3, 4]
    write_jsonl(tmp_path / "other.jsonl", tiny.trajectories(5))
    code, _, stderr = sad("train", "--resume", "--out", tmp_path / "cut", "--data", tmp_path / "other.jsonl")
    assert code == 2 and "data" in stderr


def test_long_and_refused_trajectories(sad, folder, tmp_path):
    lines = (folder / "data.jsonl").read_text().splitlines()
    (folder / "some.jsonl").write_text("\n".join(["{", *lines[:4], '{"id": "odd", "text": "x", "format": "klingon"}', "5"]))
    base = (*inputs(folder, data=folder / "some.jsonl"), "--out", tmp_path / "run", *FAST, "--long", "window")
    code, _, stderr = sad("train", *base, "--max-length", "48")
    assert code == 2 and "2 of 7 that cannot be used" in stderr and "--on-error skip" in stderr
    assert "some.jsonl, line 1" in stderr and "some.jsonl, line 7" in stderr and not (tmp_path / "run").exists()
    code, stdout, stderr = sad("train", *base, "--max-length", "48", "--on-error", "skip", "--long-head", "4")
    assert code == 0, stderr
    assert "4 trajectories in " in stdout and "3 refused" in stdout and "warning" not in stdout
    record = json.loads((tmp_path / "run/run.json").read_text())["data"]
    assert (record["read"], record["refused"], record["supervised_cut"], record["truncated"]) == (7, 3, 0, 0)
    assert record["used"] > 4
    kept = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (kept["long"], kept["long_context"], kept["long_head"], kept["on_error"]) == ("window", 0.25, 4, "skip")


def test_nothing_of_another_run_is_touched(sad, folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    code, _, stderr = sad("train", *inputs(folder), "--out", tmp_path / "run", *FAST)
    assert code == 2 and "--resume" in stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_student_from_its_config(sad, folder, tmp_path):
    student = inputs(folder, student=folder / "config_only")
    code, _, stderr = sad("train", *student, "--out", tmp_path / "run", *FAST)
    assert code == 2 and "--from-config" in stderr and not (tmp_path / "run").exists()
    code, _, stderr = sad("train", *student, "--from-config", "--out", tmp_path / "run", *FAST)
    assert code == 0, stderr


@pytest.mark.parametrize(
    ("replaced", "flags", "message"),
    [
        ({"student": "stranger"}, [], "ids differ, the first (id 290"),
        ({"data": "missing.jsonl"}, [], "no such file"),
        ({"data": "broken.jsonl"}, [], "broken.jsonl, line 2"),
        ({"teacher": None}, [], "teacher: expected a path"),
        ({"teacher": "nowhere"}, [], "not a folder"),
        ({}, ["--format", "klingon"], "klingon"),
        ({}, ["--format", "markers"], "sad inspect"),
        ({}, ["--max-length", "500"], "128 positions"),
        ({"data": "late.jsonl"}, [], "pass --long window"),
        ({}, ["--long", "cut"], "long: expected one of truncate"),
        ({}, ["--long", "window", "--long-head", "90"], "below max_length 96, got 114 tokens"),
        ({}, ["--unroll", "no"], "unroll: expected one of"),
        ({}, ["--on-error", "no"], "on_error: expected stop or skip"),
        ({}, ["--chat-template", "nowhere.jinja"], "chat_template: expected a file"),
        ({}, ["--lamda-act", "2"], "lambda_act"),
        ({}, ["--temperature", "0"], "temperature"),
        ({}, ["--backend", "cuda"], "backend"),
        ({}, ["--resume"], "config.yaml"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_is_one_message_and_exit_code_2(sad, folder, tmp_path, replaced, flags, message):
    (folder / "broken.jsonl").write_text('{"text": "Reasoning: a\\n"}\n{"text": \n')
    write_jsonl(folder / "late.jsonl", [Trajectory("late", "a long prompt " * 40 + "\nAction: go\n")], overwrite=True)
    replaced = {name: path and folder / path for name, path in replaced.items()}
    code, _, stderr = sad("train", *inputs(folder, **replaced), "--out", tmp_path / "run", *FAST, *flags)
    assert code == 2 and message in stderr
    assert "Traceback" not in stderr and stderr.count("sad: ") == 1
    assert not (tmp_path / "run").exists()


def test_help_shows_the_options_and_the_fields_of_sad_without_transformers():
    code = (
        "import sys\nfrom sad.cli.main import app\n"
        "try:\n    app(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'transformers', 'torch'} & set(sys.modules)))"
    )
    options = {"capture_output": True, "text": True, "check": True, "env": {**os.environ, "COLUMNS": "200"}}
    stdout = subprocess.run([sys.executable, "-c", code], **options).stdout
    assert stdout.endswith("[]\n")
    headings = [stdout.index(f"─ {heading} ─") for heading in ("Teacher", "Student", "Data", "Run", "Loss", "Curriculum")]
    assert headings == sorted(headings)
    for flag in ("--teacher-cache", "--lora-rank", "--eval-data", "--max-length", "--ce-weight", "--no-curriculum"):
        assert flag in stdout
    assert "gradient-accumulation" not in stdout and "[default: forward_kl]" in stdout


def test_fields_are_listed_those_of_sad_first(sad):
    code, stdout, _ = sad("train", "--fields")
    assert code == 0
    places = [stdout.index(name) for name in ("fields of SAD", "--curriculum_end", "TrainingArguments", "--learning_rate")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("flag", "field"), [("--lr", "learning_rate"), ("--batch-size", "per_device_train_batch_size"), ("--dataset", "data")]
)
def test_names_of_other_programs_are_understood_and_not_guessed(flag, field):
    with pytest.raises(InputError, match=f"Did you mean {field}\\?"):
        parse_flags([flag, "3"], ("data", "rollout_batch_size"))


def test_the_negation_of_a_field_is_explained_as_one():
    said = " ".join(field_help().split())
    assert "--no-curriculum The same as --curriculum false." in said


def test_flags_of_the_loss_reach_the_run(sad, folder, tmp_path):
    flags = ["--divergence", "jsd", "--beta", "0.2", "--ce-weight", "0.5", "--curriculum", "false"]
    code, _, stderr = sad("train", *inputs(folder), "--out", tmp_path / "run", *FAST, *flags)
    assert code == 0, stderr
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (kept["divergence"], kept["beta"], kept["ce_weight"], kept["curriculum"]) == ("jsd", 0.2, 0.5, False)
    assert kept["teacher_dtype"] == "auto" and "out" not in kept
