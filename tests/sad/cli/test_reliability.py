"""Faults of whole commands: a real kill, a second run in one folder, NaN, changed records, and output paths."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sad.files import FolderLock
from tests.processes import Program
from tests.sad.cli.test_collect_eval import SHORT, models  # noqa: F401  (fixture)
from tests.sad.cli.test_train import FAST, folder, inputs, sad  # noqa: F401  (fixtures)


def wait_for(found, process: Program) -> None:
    deadline = time.monotonic() + 400
    while not found():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_run_is_locked_before_and_resumes_after(sad, folder, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    steps = ["--save-steps", "1", "--max-steps", "100000"]
    given = ["train", *inputs(folder), "--out", out, *FAST, *steps]
    process = Program("-c", "from sad.cli.main import main; main()", *given, stdout=tmp_path / "log", own_session=True)
    try:
        wait_for(lambda: list(out.glob("checkpoint-*")), process)
        code, _, stderr = sad("train", "--resume", "--out", out)
        assert code == 2 and f"in use by process {process.pid} on " in stderr, stderr
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    step = max(int(path.name.split("-")[1]) for path in out.glob("checkpoint-*"))
    code, stdout, stderr = sad("train", "--resume", "--out", out, "--max-steps", str(step + 1))
    assert code == 0 and f"checkpoint-{step}" in stdout, stderr
    left = {path.name for path in out.iterdir() if path.name.startswith(".")}
    assert not left and (out / "model" / "model.safetensors").is_file()


def test_a_second_new_run_is_refused_and_leaves_the_first_alone(sad, folder, tmp_path):  # noqa: F811
    with FolderLock(tmp_path / "run"):
        code, _, stderr = sad("train", *inputs(folder), "--out", tmp_path / "run", *FAST)
        assert code == 2 and f"in use by process {os.getpid()}" in stderr
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_nan_ends_the_run_with_the_last_checkpoint(sad, folder, tmp_path):  # noqa: F811
    student = AutoModelForCausalLM.from_pretrained(folder / "student")
    with torch.no_grad():
        student.lm_head.weight[5, 0] = torch.nan
    student.save_pretrained(tmp_path / "student")
    for file in (folder / "student").glob("tokenizer*"):
        (tmp_path / "student" / file.name).write_bytes(file.read_bytes())
    given = inputs(folder, student=tmp_path / "student")
    code, _, stderr = sad("train", *given, "--out", tmp_path / "run", *FAST, "--save-steps", "1")
    assert code != 0 and "training step 1" in stderr and "trajectory '" in stderr and "Traceback" not in stderr
    assert not (tmp_path / "run" / "model").exists() and not list((tmp_path / "run").glob("checkpoint-*"))
    code, _, stderr = sad("train", *given, "--out", tmp_path / "two", *FAST, "--nan-policy", "never")
    assert code == 2 and "nan_policy" in stderr and not (tmp_path / "two").exists()


def test_changed_records_of_a_run_are_refused(sad, folder, tmp_path):  # noqa: F811
    out = tmp_path / "run"
    assert sad("train", *inputs(folder), "--out", out, *FAST, "--save-steps", "2")[0] == 0
    for name, old, new in (
        ("config.yaml", "learning_rate: 0.01", "learning_rate: 0.03"),
        ("run.json", '"data_sha256": "', '"data_sha257": "'),
        ("curriculum.json", '"act_tokens": [', '"act_tokens": [1'),
    ):
        content = (out / name).read_text()
        assert old in content
        (out / name).write_text(content.replace(old, new))
        code, _, stderr = sad("train", "--resume", "--out", out)
        assert code == 2 and name in stderr and "Traceback" not in stderr, stderr
        (out / name).write_text(content)


@pytest.mark.parametrize(
    ("command", "flag"),
    [("eval", "--out"), ("eval", "--trajectories"), ("collect", "--out")],
)
def test_output_paths_are_checked_before_an_episode_is_played(sad, models, tmp_path, monkeypatch, command, flag):  # noqa: F811
    def played(*args, **kwargs):
        raise AssertionError("an episode was played")

    monkeypatch.setattr("sad.cli.agents.rollout_tasks", played)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below.jsonl", Path("/proc/no/such.jsonl")):
        given = ["--model", models / "one", *SHORT, "--prompt", "none", "--tasks", "1", flag, path]
        code, _, stderr = sad(command, *given)
        assert code == 2 and str(path) in stderr and "Traceback" not in stderr


def test_two_models_with_one_trajectory_file_are_refused_first(sad, models, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sad.cli.agents.rollout_tasks", None)
    Path("a").mkdir()
    for name in ("a/one", "a-one"):
        Path(name).symlink_to(models / "one")
    given = ["--model", "a/one", "--model", "a-one", *SHORT, "--prompt", "none", "--tasks", "1", "--trajectories", "new"]
    code, _, stderr = sad("eval", *given)
    assert code == 2 and "a-one.jsonl for 'a/one' and for 'a-one'" in stderr and not Path("new").exists()


def test_a_page_is_refused_before_the_file_is_read(sad, tmp_path):  # noqa: F811
    code, _, stderr = sad("inspect", tmp_path / "missing.jsonl", "--html", "/proc/no/page.html")
    assert code == 2 and "--html" in stderr and "/proc/no/page.html" in stderr
