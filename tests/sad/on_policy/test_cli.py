"""`sad train --on-policy ENV` and `--prefix-replay`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from sad.cli.main import main
from sad.trajectories.read import read_jsonl
from sad.trajectories.trajectory import write_jsonl
from tests.sad.on_policy import doors
from tests.sad.training import tiny

FAST = [
    "--use-cpu", "--disable-tqdm", "true", "--max-length", "200", "--per-device-train-batch-size", "2",
    "--logging-steps", "1", "--gradient-accumulation-steps", "1", "--max-steps", "4", "--rollout-interval", "2",
    "--rollout-episodes", "3", "--rollout-turn-tokens", "8", "--on-policy-start", "1",
]  # fmt: skip
HOUSEHOLD = ["--on-policy", "household", "--rollout-option", "size=small", "--rollout-option", "tasks=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Returns a folder with a teacher, a student and trajectories."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, seed in (("teacher", 1), ("student", 2)):
        model = tiny.model("llama", 320, seed=seed)
        model.config.max_position_embeddings = 200
        model.save_pretrained(folder / name)
        doors.TOKENIZER.save_pretrained(folder / name)
    write_jsonl(folder / "data.jsonl", doors.demonstrations())
    return folder


@pytest.fixture
def train(monkeypatch, capsys, folder):
    """Returns a function that runs `sad train` on the folder's models and data: exit code, and all output."""

    def run(out: Path, *flags: object) -> tuple[int, str]:
        models = ["--teacher", folder / "teacher", "--student", folder / "student", "--data", folder / "data.jsonl"]
        given = [] if "--resume" in flags else [*models, *FAST]
        monkeypatch.setattr(sys, "argv", [str(x) for x in ("sad", "train", *given, "--out", out, *flags)])
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return run


def test_a_student_plays_the_household_and_the_run_resumes(train, tmp_path):
    code, shown = train(tmp_path / "run", *HOUSEHOLD, "--save-steps", "2")
    assert code == 0, shown
    logs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [log["step"] for log in logs if "rollout_success" in log] == [1, 3] and "solved" in shown
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "| own trajectories | reverse_kl, share of the batches from 1.0 to 1.0 |" in card and "rollout_success" in card
    played = read_jsonl(tmp_path / "run" / "rollouts" / "step-00000002.jsonl.gz")
    assert len(played) == 3 and {one.env for one in played} == {"household"}
    before = (tmp_path / "run" / "rollouts" / "step-00000002.jsonl.gz").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    shutil.rmtree(tmp_path / "run" / "model")
    code, shown = train(tmp_path / "run", "--resume")
    assert code == 0, shown
    again = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [log["on_policy_loss_reason"] for log in again[:4]] == [log["on_policy_loss_reason"] for log in logs[:4]]
    assert (tmp_path / "run" / "rollouts" / "step-00000002.jsonl.gz").read_bytes() == before


def test_prefix_replay_needs_no_environment(train, tmp_path):
    code, shown = train(tmp_path / "run", "--prefix-replay")
    assert code == 0, shown
    played = read_jsonl(tmp_path / "run" / "rollouts" / "step-00000000.jsonl.gz")
    assert [one.id.partition("@")[0] for one in played] and all("acted" in one.extra for one in played)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--on-policy", "household", "--prefix-replay"], "prefix_replay: expected no --on-policy beside it"),
        (["--on-policy", "nowhere"], "name: expected one of"),
        (["--on-policy", "household", "--rollout-temperature", "0"], "temperature: expected a number > 0"),
        ([*HOUSEHOLD, "--rollout-tasks", "9"], "tasks: expected 1 to 4"),
        ([*HOUSEHOLD, "--rollout-prefix", "0.5"], "rollout_prefix: expected trajectories of the teacher on the tasks"),
        (["--rollout-tasks", "3"], "rollout_tasks: expected --on-policy or --prefix-replay beside it, got 3"),
        (["--prefix-replay", "--rollout-endpoint", "http://localhost:1/v1"], "Pass --rollout-model and --rollout-reload."),
        (["--on-policy", "household", "--on-policy-share", "2"], "on_policy_share: expected a share from 0 to 1"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(train, tmp_path, flags, message):
    code, shown = train(tmp_path / "run", *flags)
    assert code == 2 and message in shown and "Traceback" not in shown, shown
    assert not (tmp_path / "run").exists()
