"""`sad collect` and `sad eval` on the command line: files, resumption, tables, and exit code 2 for invalid input."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest

import sad as package
from sad.agents.resumable import ResumableFile
from sad.cli.main import main
from tests.sad.agents.toy import Doors, tiny_model, toy_tokenizer

ENV = "doors-for-the-command-line"
SHORT = ["--env", ENV, "--max-steps", "3", "--max-turn-tokens", "12"]


@package.envs.register(ENV)
class RegisteredDoors(Doors):
    """The toy environment as a user would register it: without prompts and expert."""

    def __init__(self, root: str | None, split: str, seed: int, tasks: int = 12) -> None:
        super().__init__()
        self.tasks = self.tasks[:tasks]
        self.skipped = ["door 13: no such door"] if split == "broken" else []
        if self.skipped:
            warnings.warn(f"1 doors skipped; the first: {self.skipped[0]}", stacklevel=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tokenizer = toy_tokenizer()
    for name, seed in (("one", 0), ("two", 1)):
        tiny_model("llama", len(tokenizer), seed=seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def sad(monkeypatch, capsys):
    """Returns a function that runs `sad ...` and returns exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sad", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        return code, *capsys.readouterr()

    return run


def test_an_interrupted_collection_resumes_to_the_same_file(sad, models, tmp_path, monkeypatch) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    command = ["collect", "--model", models / "one", *SHORT, "--prompt", "none", "--tasks", "5", "--samples", "2"]
    code, said, stderr = sad(*command, "--out", whole)
    assert code == 0 and "10 trajectories" in said, stderr
    assert [t.id for t in package.read_jsonl(whole)] == [f"open-{k}{s}" for s in ("", "#1") for k in range(1, 6)]
    assert package.read_jsonl(whole)[0].extra["temperature"] == 0.2

    add, kept = ResumableFile.add, []

    def killed(self, trajectory) -> None:
        if len(kept) == 4:
            raise KeyboardInterrupt
        kept.append(trajectory.id)
        add(self, trajectory)

    with monkeypatch.context() as patched:
        patched.setattr(ResumableFile, "add", killed)
        assert sad(*command, "--out", cut)[0] != 0
    partial = tmp_path / "cut.jsonl.partial"
    assert not cut.exists() and [t.id for t in package.read_jsonl(partial)] == kept
    written = partial.read_bytes()
    for place in range(0, len(written), 97):
        partial.write_bytes(written[:place] + bytes([written[place] ^ 4]) + written[place + 1 :])
        code, _, stderr = sad(*command, "--out", cut, "--resume")
        assert code == 2 and "cut.jsonl.partial, line " in stderr and "Delete the line" in stderr
    partial.write_bytes(written + b'{"id": "open-5", "text": "You se')
    assert sad(*command, "--out", cut)[0] == 2, "continuing needs --resume"
    code, _, stderr = sad(*command, "--out", cut, "--resume", "--temperature", "0.3")
    assert code == 2 and "temperature was 0.2 and is 0.3" in stderr
    code, _, stderr = sad(*command, "--out", cut, "--resume", "--batch-size", "3")
    assert code == 0 and "4 episodes exist already; dropped an incomplete one" in stderr
    assert cut.read_bytes() == whole.read_bytes() and not partial.exists()
    code, said, _ = sad(*command, "--out", cut, "--resume")
    assert code == 0 and "nothing left to do" in said


def test_the_expert_and_the_solved_flag(sad, tmp_path) -> None:
    command = ["collect", "--model", "expert", "--option", "size=small", "--tasks", "4", "--max-steps", "5"]
    code, said, _ = sad(*command, "--out", tmp_path / "all.jsonl.gz")
    everything = package.read_jsonl(tmp_path / "all.jsonl.gz")
    solved = [t for t in everything if t.success]
    assert code == 0 and 0 < len(solved) < 4 == len(everything) and f"{len(solved)} of 4" in said
    assert sad(*command, "--solved", "--out", tmp_path / "solved.jsonl")[0] == 0
    assert package.read_jsonl(tmp_path / "solved.jsonl") == solved
    config = json.loads((tmp_path / "solved.jsonl.settings.json").read_text())
    assert config["option"] == ["size=small"] and config["tasks"] == 4 and "samples" not in config


def test_models_that_run_here_despite_an_endpoint_are_named(sad, models) -> None:
    pytest.importorskip("openai", reason="the endpoint extra is not installed")
    from tests.sad.agents.server import serving
    from tests.sad.agents.test_endpoint import solver

    with serving(solver) as (url, requests):
        command = ["eval", *SHORT, "--model", models / "one", "--model", "gpt", "--endpoint", url, "--tasks", "2"]
        code, _, stderr = sad(*command)
        assert code == 0 and f"{models / 'one'} runs here, not at {url}" in stderr, stderr
        assert {request["model"] for request in requests} == {"gpt"}


def test_a_collection_resumes_after_an_endpoint_failure(sad, tmp_path, monkeypatch) -> None:
    pytest.importorskip("openai", reason="the endpoint extra is not installed")
    from tests.sad.agents.server import serving
    from tests.sad.agents.test_endpoint import solver

    monkeypatch.setenv("MY_KEY", "secret")
    healthy = False

    def answer(path: str, body: dict):
        if not healthy and "open door 3." in str(body):
            return 403, {"error": {"message": "quota"}}
        return solver(path, body)

    with serving(answer) as (url, requests):
        command = ["collect", "--model", "gpt", "--endpoint", url, "--api-key-env", "MY_KEY", *SHORT, "--prompt", "none"]
        command += ["--tasks", "5", "--batch-size", "1", "--out", tmp_path / "out.jsonl"]
        code, _, stderr = sad(*command)
        assert code == 2 and "quota" in stderr and "Traceback" not in stderr
        assert [t.id for t in package.read_jsonl(tmp_path / "out.jsonl.partial")] == ["open-1", "open-2"]
        healthy, before = True, len(requests)
        code, said, stderr = sad(*command, "--resume")
        assert code == 0 and "5 of 5 episodes solved (ended: won 5)" in said, stderr
        assert len(requests) - before == 3 * 2 and requests[-1]["key"] == "Bearer secret"
        code, _, stderr = sad(*command[:-1], tmp_path / "other.jsonl", "--decoding", "admissible")
        assert code == 2 and "decoding" in stderr and not list(tmp_path.glob("other*"))


def test_models_are_compared_on_the_same_tasks(sad, models, tmp_path) -> None:
    one, two = models / "one", models / "two"
    common = ["eval", "--model", one, "--model", two, *SHORT, "--tasks", "6", "--decoding", "admissible"]
    code, said, stderr = sad(*common, "--out", tmp_path / "eval.json", "--trajectories", tmp_path / "trajectories")
    assert code == 0, stderr
    result = json.loads((tmp_path / "eval.json").read_text())
    assert (result["decoding"], result["tasks"], result["temperature"]) == ("admissible", 6, 0)
    assert list(result["models"]) == [str(one), str(two)]
    assert "admissible decoding" in said and "95 % intervals" in said
    files = sorted((tmp_path / "trajectories").iterdir())
    assert len(files) == 2
    for file, metrics in zip(files, result["models"].values()):
        trajectories = package.read_jsonl(file)
        assert [t.id for t in trajectories] == [f"open-{k}" for k in range(1, 7)]
        assert sum(metrics["ends"].values()) == 6 == metrics["tasks"]
    said = sad(*common, "--split", "broken")[2]
    assert "1 records skipped" in said and said.count("door 13") == 1


def test_the_reference_is_one_of_the_models_or_a_file(sad, models, tmp_path) -> None:
    env = ["--model", "expert", "--split", "valid", "--option", "size=small", "--option", "tasks=3"]
    assert sad("collect", *env, "--out", tmp_path / "teacher.jsonl")[0] == 0
    for teacher in ("expert", tmp_path / "teacher.jsonl"):
        out = tmp_path / f"{Path(teacher).stem}.json"
        code, _, stderr = sad("eval", *env, "--tokenizer", models / "one", "--teacher", teacher, "--out", out)
        metrics = json.loads(out.read_text())["models"]["expert"]
        assert code == 0 and metrics["cot_match"] == 1 and metrics["cot_match_interval"] == [1, 1], stderr
    short = [word.replace("tasks=3", "tasks=4") for word in env]
    code, _, stderr = sad("eval", *short, "--tokenizer", models / "one", "--teacher", tmp_path / "teacher.jsonl")
    assert code == 2 and "reference" in stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "not a folder"),
        (["--model", "expert", "--option", "size"], "name=value"),
        (["--model", "expert", "--option", "colour=red"], "colour"),
        (["--model", "expert", "--tasks", "0"], "tasks"),
        (["--model", "expert"], "--tokenizer"),
        (["--model", "expert", "--model", "expert"], "each model once"),
        (["--model", "ONE", "--decoding", "beam"], "decoding"),
        (["--model", "ONE", "--prompt", "paper"], "prompt"),
        (["--model", "ONE", "--teacher", "none.jsonl"], "no such file"),
        (["--model", "gpt", "--endpoint", "localhost:8000"], "http://"),
        (["--model", "ONE", "--endpoint", "http://127.0.0.1:9/v1"], "Remove --endpoint"),
    ],
)
def test_invalid_input_is_one_message_and_exit_code_2(sad, models, arguments: list[str], message: str) -> None:
    arguments = [str(models / "one") if word == "ONE" else word for word in arguments]
    code, _, stderr = sad("eval", "--env", ENV, *arguments)
    assert code == 2 and message in stderr and "Traceback" not in stderr and stderr.count("sad: ") == 1
