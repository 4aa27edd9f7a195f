"""The tiny variant of the demo records its run, and its files reproduce every number in `results.json`."""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import sad
from sad.agents.evaluate import evaluate
from sad.cli.main import app, main
from sad.demo.config import FAST


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    done = CliRunner().invoke(app, ["demo", "--fast", "--seed", "3", "--out", str(out)])
    assert done.exit_code == 0, done.output
    (out.parent / "output.txt").write_text(done.output)
    return out


def test_terminal_output_matches_results_json(run: Path) -> None:
    output = (run.parent / "output.txt").read_text()
    results = json.loads((run / "results.json").read_text())
    assert [stage["name"] for stage in results["stages"]] == [
        line[2:36].strip() for line in output.splitlines() if line[:1] == "✓"
    ]
    assert f"{results['models']['teacher']['parameters']:,}" in output
    assert results["settings"]["seed"] == 3 and "seed 3" in output
    assert sum(stage["seconds"] for stage in results["stages"]) <= results["seconds"]


def test_metrics_match_the_saved_trajectories(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(run / "teacher")
    episodes = {path.stem: sad.read_jsonl(path) for path in (run / "played").iterdir()}
    assert set(episodes) == {"teacher", "sad", "token-kl", "imitation"}
    for name, metrics in results["evaluations"].items():
        again = evaluate(episodes[name.replace(" ", "-").lower()], tokenizer, reference=episodes["teacher"], seed=3)
        assert json.loads(json.dumps(again)) == metrics
        assert metrics["tasks"] == FAST.unseen_tasks and metrics["decoding"] == "free"
    task_ids = {tuple(t.id for t in trajectories) for trajectories in episodes.values()}
    assert len(task_ids) == 1, "the agents must have the same tasks"
    trained = {t.id for t in sad.read_jsonl(run / "expert.jsonl.gz")} | {t.id for t in sad.read_jsonl(run / "teacher.jsonl")}
    assert len(trained) == FAST.expert_tasks + FAST.teacher_tasks
    assert trained.isdisjoint(t.id for t in episodes["teacher"])


def test_models_are_saved_before_and_after_training(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    names = ("student-before", "sad", "token-kl", "imitation")
    teacher, before, *students = (AutoModelForCausalLM.from_pretrained(run / name) for name in ("teacher", *names))
    assert results["models"]["teacher"]["parameters"] == sum(p.numel() for p in teacher.parameters())
    assert results["models"]["student"]["parameters"] == sum(p.numel() for p in before.parameters())
    heads = [model.get_output_embeddings().weight for model in (before, *students)]
    assert not any(torch.equal(a, b) for a, b in combinations(heads, 2)), "each method changes the weights in its own way"
    assert len(results["curves"]["teacher"]) == FAST.imitation.steps
    assert results["curves"]["reason"][-1][0] == FAST.distillation.steps
    page = (run / "report.html").read_text()
    assert page.count("<polyline") == 3 and 'class="r1"' in page


def test_the_same_seed_gives_the_same_results(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert CliRunner().invoke(app, ["demo", "--fast", "--seed", "3", "--out", str(again)]).exit_code == 0
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (run, again))
    assert first["evaluations"] == second["evaluations"] and first["curves"] == second["curves"]


def test_a_folder_with_a_run_is_rejected_and_unchanged(run: Path, monkeypatch, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr(sys, "argv", ["sad", "demo", "--out", str(run)])
    with pytest.raises(SystemExit) as stopped:
        main()
    stderr = capsys.readouterr().err
    assert stopped.value.code == 2 and "which is not empty" in stderr and stderr.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_collect_and_eval_read_the_files_of_the_demo(run: Path, tmp_path: Path) -> None:
    runner, env = CliRunner(), ["--option", "size=small", "--option", "tasks=4", "--max-steps", "3"]
    kept = tmp_path / "kept.jsonl"
    done = runner.invoke(app, ["collect", "--model", "expert", "--tasks", "3", "--out", str(kept), *env[:4]])
    assert done.exit_code == 0 and "3 of 3 episodes solved" in done.output, done.output
    assert [t.success for t in sad.read_jsonl(kept)] == [True] * 3
    again = runner.invoke(app, ["collect", "--model", "expert", "--out", str(kept)])
    assert again.exit_code != 0 and "which exists" in str(again.exception)

    metrics, trajectories, student = tmp_path / "metrics.json", tmp_path / "trajectories.jsonl", str(run / "sad")
    options = ["--tasks", "4", "--decoding", "admissible", "--out", str(metrics), "--trajectories", str(trajectories), *env]
    done = runner.invoke(app, ["eval", "--model", student, *options])
    assert done.exit_code == 0, (done.output, done.exception)
    written = json.loads(metrics.read_text())
    assert written["tasks"] == 4 and written["decoding"] == "admissible" and written["split"] == "valid"
    assert written["models"][student]["ends"] and len(sad.read_jsonl(trajectories)) == 4

    expert = ["eval", "--model", "expert", "--tasks", "4", "--tokenizer", student, *env[:4]]
    done = runner.invoke(app, expert)
    assert done.exit_code == 0 and "100 %" in done.output


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["collect", "--model", "nowhere", "--out", "x.jsonl"], "not a folder"),
        (["collect", "--model", "expert", "--out", "x.jsonl", "--option", "size"], "name=value"),
        (["collect", "--model", "expert", "--out", "x.jsonl", "--option", "colour=red"], "colour"),
        (["collect", "--model", "expert", "--out", "x.jsonl", "--tasks", "501"], "1 to 500"),
        (["eval", "--model", "expert", "--tasks", "1"], "counted in tokens"),
        (["eval", "--model", "expert", "--env", "moon"], "moon"),
    ],
)
def test_invalid_arguments(arguments: list[str], word: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, sad.errors.InputError) and word in str(done.exception)
    assert list(tmp_path.iterdir()) == []
