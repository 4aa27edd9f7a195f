"""`sad plan` from the command line."""

from __future__ import annotations

import json
import sys

import pytest
from rich.console import Console

from sad.cli.main import main
from sad.planner.formulas import MODES

GPT2 = ("--teacher", "gpt2-xl", "--student", "gpt2", "--batch", "64", "--seq", "512", "--gpu", "24GB")


@pytest.fixture
def sad_plan(monkeypatch, capsys):
    """Runs `sad plan ...`; returns exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sad", "plan", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        output = capsys.readouterr()
        return end.value.code or 0, output.out, output.err

    return run


def test_what_fits_and_how_to_run_it(sad_plan):
    code, out, err = sad_plan(*GPT2)
    assert code == 0 and not err
    lines = out.splitlines()
    assert lines[0] == "teacher: gpt2-xl, 1,557,611,200 parameters"
    assert "GPU: 24.0 GB, of which 22.3 for tensors; batch 64 x 512" in lines
    of_caches = lines.index("Teacher cache on disk, per supervised token")
    rows, caches = (
        {line.split()[0]: line.split() for line in part if line.startswith("  ")}
        for part in (lines[:of_caches], lines[of_caches:])
    )
    assert {name: row[1] for name, row in rows.items()} == {"mode": "fits"} | dict.fromkeys(MODES, "yes")
    assert caches["cached"] == ["cached", "no", "272", "0.3", "0.0"]
    assert caches["hidden"] == ["hidden", "yes", "3204", "3.2", "0.2"]
    assert int(rows["linear"][2]) > int(rows["naive"][2])
    command = lines[-1]
    assert command.startswith("sad train --teacher gpt2-xl --student gpt2 ")
    assert f"--per-device-train-batch-size {rows['linear'][2]} " in command and command.endswith("--bf16")


def test_table_on_a_terminal(sad_plan, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(Console, "is_terminal", True)
    out = sad_plan(*GPT2)[1]
    assert "│" in out and "linear" in out


def test_json(sad_plan):
    code, out, _ = sad_plan("--teacher", "opt-13b", "--student", "opt-1.3b", "--gpu", "24GB", "--json")
    found = json.loads(out)
    assert code == 0 and found["mode"] == "cached"
    cached = found["modes"]["cached"]
    assert cached["savings"] == ["8-bit AdamW"] and cached["optimizer"] == "adamw_8bit"
    sizes = cached["bytes"]
    assert sizes.pop("peak") == sum(sizes.values()) <= found["usable"] < found["gpu"] == 24 * 10**9
    assert not found["modes"]["linear"]["fits"]
    assert found["caches"] == {"cached": {"row": 272, "head": 0}, "hidden": {"row": 10244, "head": 2 * 50272 * 5120}}


def test_exit_code_if_nothing_fits(sad_plan):
    code, out, _ = sad_plan("--teacher", "llama-65b", "--student", "llama-13b", "--gpu", "24GB")
    assert code == 1
    assert out.splitlines()[-1].startswith("Nothing fits: cached lacks ")
    assert "sad train" not in out


def test_options_reach_the_plan(sad_plan):
    arguments = (*GPT2, "--lora", "8", "--lora-target", "all", "--no-gradient-checkpointing", "--dtype", "fp32", "--json")
    found = json.loads(
        sad_plan(*arguments, "--optimizer", "adafactor", "--teacher-bits", "4", "--supervised-fraction", "0.2")[1]
    )
    assert found["lora"] == 8 and found["lora_target"] == "all" and found["gradient_checkpointing"] is False
    assert (found["dtype"], found["optimizer"], found["teacher_bits"], found["supervised_fraction"]) == (
        "fp32",
        "adafactor",
        4,
        0.2,
    )
    assert found["command"].startswith("sad train ") and "bf16" not in found["command"]
    assert "--teacher-quantization 4bit --lora-rank 8 --" in found["command"]


def test_adapters_in_the_command(sad_plan):
    """Adapters on queries and values have the names of the student's layers; the frozen weights are bfloat16."""
    for student, names in (("gpt2", "c_attn"), ("opt-125m", "q_proj,v_proj")):
        command = json.loads(sad_plan(*GPT2, "--student", student, "--lora", "8", "--json")[1])["command"]
        assert f"--lora-rank 8 --lora-targets {names} --student-dtype bfloat16 --" in command


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gpu", "huge"), "sad: gpu: expected a size of memory, got 'huge'."),
        (("--student", "gpt3"), "sad: student: expected a folder with a config.json or the name of a known model"),
        (("--seq", "4096"), "sad: seq: expected at most the teacher's 1024 positions"),
        (("--optimizer", "sgd"), "sad: optimizer: expected one of"),
    ],
    ids=["gpu", "student", "seq", "optimizer"],
)
def test_bad_input_is_one_message_and_exit_code_2(sad_plan, flags, message):
    code, out, err = sad_plan(*GPT2, *flags)
    assert code == 2 and not out
    assert err.startswith(message) and len(err.splitlines()) == 1
