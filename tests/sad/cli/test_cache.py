"""`sad cache` from the command line, and `sad train` from the cache."""

from __future__ import annotations

import json

import pytest

from sad import TeacherCache
from sad.trajectories.trajectory import write_jsonl
from tests.sad.cli.test_train import FAST, folder, sad  # noqa: F401  (fixtures)
from tests.sad.training import tiny

SAME = ["--max-length", "96", "--format", "sad"]


@pytest.fixture(scope="module")
def cache(folder, tmp_path_factory):  # noqa: F811
    """A cache of two data files. The first command writes one, the second adds the other."""
    import sys

    from sad.cli.main import main

    write_jsonl(folder / "eval.jsonl", tiny.trajectories(4, seed=3))
    path = tmp_path_factory.mktemp("cache") / "cache"
    patch = pytest.MonkeyPatch()
    for files in (["data"], ["data", "eval"]):
        data = [part for name in files for part in ("--data", str(folder / f"{name}.jsonl"))]
        teacher = ["--teacher", str(folder / "teacher"), "--out", str(path), "--top-k", "16"]
        patch.setattr(sys, "argv", ["sad", "cache", *teacher, *data, *SAME, "--use-cpu"])
        with pytest.raises(SystemExit) as exit:
            main()
        assert not exit.value.code
    patch.undo()
    return path


def test_a_student_learns_from_it_without_the_teacher(sad, folder, cache, tmp_path):  # noqa: F811
    assert TeacherCache(cache).metadata.teacher_name == "teacher"
    paths = ["--student", folder / "student", "--data", folder / "data.jsonl", "--eval-data", folder / "eval.jsonl"]
    code, stdout, stderr = sad(
        "train", "--teacher-cache", cache, *paths, "--format", "sad", "--out", tmp_path / "run", *FAST
    )
    assert code == 0, stderr
    assert "16 of 300 log-probabilities of teacher" in stdout and "16 trajectories" in stdout
    logs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [log["loss_act"] for log in logs if "loss_act" in log]
    assert losses[-1] < losses[0] and [log for log in logs if "eval_loss_act" in log]
    code, _, stderr = sad("train", "--resume", "--out", tmp_path / "run", "--max-steps", "5")
    assert code == 0, stderr


def test_observations(sad, folder, tmp_path):  # noqa: F811
    data = ["--data", folder / "data.jsonl", "--format", "sad"]
    made = ["--teacher", folder / "teacher", "--out", tmp_path / "cache", "--max-length", "96", "--use-cpu", "--observe"]
    code, stdout, stderr = sad("cache", *made, *data)
    assert code == 0, stderr
    assert " observation, " in stdout and f"{TeacherCache(tmp_path / 'cache').rows} supervised tokens" in stdout
    paths = ["--teacher-cache", tmp_path / "cache", "--student", folder / "student", *data]
    code, _, stderr = sad("train", *paths, "--out", tmp_path / "run", *FAST)
    assert code == 2 and "set lambda_observe above 0" in stderr and not (tmp_path / "run").exists()
    code, _, stderr = sad("train", *paths, "--out", tmp_path / "run", "--lambda-observe", "0.5", *FAST)
    assert code == 0, stderr
    logs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(log["loss_observe"] > 0 and log["tokens_observe"] > 0 for log in logs if "loss" in log)
    assert "lambda_observe: 0.5" in (tmp_path / "run" / "config.yaml").read_text()


def test_hidden_states(sad, folder, tmp_path):  # noqa: F811
    """Cached hidden states teach with another temperature and divergence. Their default dtype has 16 bits."""
    data = ["--data", folder / "data.jsonl", *SAME]
    made = ["--teacher", folder / "teacher", "--out", tmp_path / "cache", "--use-cpu", "--hidden"]
    code, stdout, stderr = sad("cache", *made, *data)
    assert code == 0, stderr
    cache = TeacherCache(tmp_path / "cache")
    assert cache.metadata.dtype == "bfloat16" and cache.metadata.teacher_dtype == "float32"
    assert f"{cache.rows} supervised tokens, " in stdout and "MB for the head" in stdout
    paths = ["--teacher-cache", tmp_path / "cache", "--student", folder / "student", *data[:2], "--format", "sad"]
    code, stdout, stderr = sad(
        "train", *paths, "--out", tmp_path / "run", *FAST, "--temperature", "2", "--divergence", "reverse_kl"
    )
    assert code == 0 and "hidden states (bfloat16) of teacher" in stdout, stderr
    losses = [json.loads(line).get("loss") for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] > 0
    for flags, message in ((["--top-k", "8"], "nothing with hidden"), (["--dtype", "uint16"], "for hidden states")):
        code, _, stderr = sad("cache", *made, *data, *flags)
        assert code == 2 and message in stderr and "Traceback" not in stderr


def test_long_trajectories_in_windows(sad, folder, tmp_path):  # noqa: F811
    data = ["--data", folder / "data.jsonl", "--format", "sad"]
    made = ["--teacher", folder / "teacher", "--out", tmp_path / "cache", "--use-cpu", "--long", "window"]
    code, stdout, stderr = sad("cache", *made, *data, "--max-length", "48")
    assert code == 0 and "12 trajectories in " in stdout, stderr
    paths = ["--teacher-cache", tmp_path / "cache", "--student", folder / "student", *data, "--out", tmp_path / "run"]
    code, _, stderr = sad("train", *paths, *FAST, "--max-length", "48")
    assert code == 2 and "--long" in stderr
    code, _, stderr = sad("train", *paths, *FAST, "--max-length", "48", "--long", "window")
    assert code == 0, stderr


def test_a_second_command_reports_the_whole(sad, folder, cache):  # noqa: F811
    code, stdout, stderr = sad(
        "cache",
        "--teacher",
        folder / "teacher",
        "--data",
        folder / "data.jsonl",
        "--out",
        cache,
        "--use-cpu",
        "--top-k",
        16,
        *SAME,
    )
    assert code == 0, stderr
    assert f"{TeacherCache(cache).rows} supervised tokens" in stdout and "of the teacher's probability" in stdout


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("cache", ["--top-k", "8"], "top_k 8, got top_k 16"),
        ("cache", ["--top-k", "0"], "top_k"),
        ("cache", ["--dtype", "int4"], "dtype"),
        ("cache", ["--vocab-size", "20"], "vocab_size"),
        ("cache", ["--data", "nowhere.jsonl"], "no such file"),
        ("cache", ["--teacher", "nowhere"], "not a folder"),
        ("cache", ["--max-length", "500"], "128 positions"),
        ("cache", ["--format", "markers"], "sad inspect"),
        ("train", ["--teacher", "nowhere"], "teacher_cache: expected no teacher"),
        ("train", ["--student", "stranger"], "tokenizer of the teacher cache"),
        ("cache", ["--observe"], "observe True, got observe False"),
        ("train", ["--temperature", "2"], "temperature"),
        ("train", ["--lambda-observe", "0.5"], "`sad cache --observe`"),
        ("train", ["--max-length", "20"], "missing"),
        ("train", ["--teacher-cache", "nowhere"], "none there"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value,
)
def test_bad_input_is_one_message_and_exit_code_2(sad, folder, cache, tmp_path, command, flags, message):  # noqa: F811
    given = ["--data", folder / "data.jsonl", *SAME]
    if command == "cache":
        given += ["--teacher", folder / "teacher", "--out", cache, "--top-k", "16", "--use-cpu"]
    else:
        given = [*given[:2], "--student", folder / "student", "--teacher-cache", cache, "--out", tmp_path / "run", *FAST]
        flags = [folder / "stranger" if flag == "stranger" else flag for flag in flags]
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    code, _, stderr = sad(command, *given, *flags)
    assert code == 2 and message in stderr, stderr
    assert "Traceback" not in stderr and stderr.count("sad: ") == 1
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == before and not (tmp_path / "run").exists()
