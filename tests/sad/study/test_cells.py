"""Cells are pure functions of their configuration, and an interrupted study goes on without a difference."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import sad
from sad.errors import InputError
from sad.study.assets import Assets, keep_layers
from sad.study.cells import RESULT, SELECT, TEST, Cell, Results, all_cells, choose_rate, run_cell
from sad.study.config import Study, read_study
from sad.study.prepare import prepare
from sad.study.runner import Progress, run_cells
from sad.study.summary import summarize

from .tiny import TINY


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """The configuration and a folder with the shared files, and no cell."""
    folder = tmp_path_factory.mktemp("study")
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY))
    lines: list[str] = []
    prepare(read_study(config), folder / "out", lines.append)
    assert any("teacher" in line for line in lines)
    prepare(read_study(config), folder / "out", lambda line: pytest.fail("everything exists"))
    return config, folder / "out"


def changed(config: Path, **changes) -> Study:
    path = config.with_name(f"{len(list(config.parent.iterdir()))}.yaml")
    path.write_text(yaml.safe_dump(copy.deepcopy(TINY) | changes))
    return read_study(path)


def test_the_same_cell_gives_the_same_bytes(made, tmp_path: Path) -> None:
    config, folder = made
    study = read_study(config)
    cell = Cell("household", "small", "sad", 0, 0.01, TEST)
    place = Results(folder, study).place(cell)
    run_cell(study, folder, cell)
    first = (place / RESULT).read_bytes()
    run_cell(study, folder, cell)
    assert (place / RESULT).read_bytes() == first, "a finished cell is kept"
    (place / RESULT).unlink()
    run_cell(study, folder, cell)
    assert (place / RESULT).read_bytes() == first
    result = json.loads(first)
    played = sad.read_jsonl(place / "played-4.jsonl.gz")
    assert [one.id for one in played] == result["tasks"] and len(played) == 4
    assert result["measures"]["success"] == [int(one.success) for one in played]
    assert [point["step"] for point in result["points"]] == [2, 4] and len(result["points"][0]["success"]) == 2
    assert {"loss_reason", "loss_act"} <= set(result["curve"][-1])


def test_a_damaged_result_is_refused(made) -> None:
    config, folder = made
    study = read_study(config)
    cell = Cell("household", "small", "imitation", 0, 0.01, TEST)
    run_cell(study, folder, cell)
    path = Results(folder, study).place(cell) / RESULT
    path.write_text(path.read_text().replace('"success": "', '"success": "1', 1))
    with pytest.raises(InputError, match="Delete the folder of this cell"):
        Results(folder, study).read(cell)


def test_the_learning_rate_is_that_which_solves_most(made, monkeypatch) -> None:
    config, folder = made
    study = changed(config, learning_rates=[0.02, 0.01, 0.04])
    results = Results(folder, study)
    solved = {0.02: "110", 0.01: "011", 0.04: "100"}
    monkeypatch.setattr(
        results, "read", lambda cell: {"points": [{"success": solved[cell.learning_rate]}]} if cell.panel == SELECT else None
    )
    assert choose_rate(study, results, "household", "small", "sad") == 0.01, "of two equal rates the smaller one"
    known, waiting = all_cells(study, results)
    assert waiting == 0 and [cell.panel for cell in known].count(SELECT) == 6
    monkeypatch.setattr(results, "read", lambda cell: None)
    known, waiting = all_cells(study, results)
    assert waiting == 2 and all(cell.panel == SELECT and cell.seed == study.selection_seed for cell in known)


def test_pretrained_students_and_samples(made) -> None:
    config, folder = made
    study = changed(config, grid=[{"methods": ["random_spans"], "students": ["warm"]}], samples=2)
    cell = Cell("household", "warm", "random_spans", 0, 0.01, TEST)
    with pytest.raises(InputError, match="sad study prepare"):
        run_cell(study, folder, cell)
    prepare(study, folder, lambda line: None)
    run_cell(study, folder, cell)
    result = Results(folder, study).read(cell)
    assert len(result["sampled_successes"]) == 4 and all(0 <= count <= 2 for count in result["sampled_successes"])
    [group] = summarize(study, Results(folder, study))["groups"]
    [method] = group["methods"]
    assert method["state"] == "done" and len(method["pass_k"]) == 2 and method["difference"] is None


def test_too_few_tasks_are_named(made, tmp_path: Path) -> None:
    environments = copy.deepcopy(TINY["environments"])
    environments["household"]["expert_tasks"] = 50
    study = changed(made[0], environments=environments)
    with pytest.raises(InputError, match="at least 50, got 40"):
        prepare(study, tmp_path / "out", lambda line: None)


def test_a_failed_cell_is_recorded_and_the_others_go_on(made, monkeypatch) -> None:
    config, folder = made
    study = changed(config, seeds=[7])
    results = Results(folder, study)
    commands = {
        "sad": [sys.executable, "-c", "import sys; sys.exit('no memory')"],
        "token_kl": [sys.executable, "-c", "pass"],
    }
    monkeypatch.setattr("sad.study.runner._command", lambda study, config, folder, cell: commands[cell.method])
    seen: list[Progress] = []
    run_cells(study, config, folder, 2, seen.append)
    assert results.failure(Cell("household", "small", "sad", 7, 0.01, TEST)) == "exit code 1: no memory"
    states = {one["name"]: one for one in summarize(study, results)["groups"][0]["methods"]}
    assert states["sad"]["state"] == "failed" and states["sad"]["failed"][0]["seed"] == 7
    assert states["token_kl"]["state"] == "open"
    assert seen[-1].failed == 1 and seen[-1].running == 0


def test_killed_and_continued_gives_the_same_summary(made, tmp_path: Path) -> None:
    """Kills the command with SIGKILL while cells run. Its processes end, and a second run leaves the same summary."""
    config, folder = made
    study = read_study(config)
    once = tmp_path / "once"
    once.mkdir()
    (once / "assets").symlink_to(folder / "assets")
    for cell in all_cells(study, Results(once, study))[0]:
        run_cell(study, once, cell)
    expected = json.dumps(summarize(study, Results(once, study)))

    out = tmp_path / "out"
    out.mkdir()
    (out / "assets").symlink_to(folder / "assets")
    command = [sys.executable, "-m", "sad.cli.main", "study", str(config), "--out", str(out), "--jobs", "2"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    deadline = time.monotonic() + 300
    while not list(out.glob("cells/*/.lock")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(out.glob("cells/*/.lock")), "no cell has begun"
    running.send_signal(signal.SIGKILL)
    running.wait()
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.dumps(json.loads((out / "summary.json").read_text())) == expected
    assert (out / "report.html").exists() and (out / "report.md").exists()
    assert not list(out.glob("cells/*/failed.json")), "a process that ends well is not a failure"


def test_every_other_layer_of_a_model(made) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 50}
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=5, **sizes)).eval()
    layers = list(model.model.layers)
    assert keep_layers(model, 2) == 3
    assert list(model.model.layers) == layers[::2] and model.config.num_hidden_layers == 3
    ids = torch.arange(6)[None]
    cached = model(ids[:, :5], use_cache=True)
    last = model(ids[:, 5:], past_key_values=cached.past_key_values).logits[:, -1]
    torch.testing.assert_close(last, model(ids).logits[:, -1], rtol=1e-4, atol=1e-5)


def test_the_place_of_the_data_is_not_part_of_the_identity(made) -> None:
    environments = copy.deepcopy(TINY["environments"])
    environments["household"]["root"] = "somewhere"
    study, other = read_study(made[0]), changed(made[0], environments=environments)
    paths = [Assets(made[1], "household", one.environments["household"]).teacher_path for one in (study, other)]
    assert paths[0] == paths[1]


@pytest.mark.parametrize("method", ["sad_on_policy", "sad_prefix_replay"])
def test_methods_on_policy(made, method: str) -> None:
    """The student plays during the training, and the same cell gives the same bytes."""
    settings = {"on_policy_start": 1.0, "rollout_interval": 2, "rollout_episodes": 4}
    methods = {"own": {"base": method, "settings": settings}}
    study = changed(made[0], methods=methods, grid=[{"methods": ["own"], "students": ["small"]}], threads=1)
    cell = Cell("household", "small", "own", 0, 0.01, TEST)
    path = Results(made[1], study).place(cell) / RESULT
    run_cell(study, made[1], cell)
    first = path.read_bytes()
    path.unlink()
    run_cell(study, made[1], cell)
    assert path.read_bytes() == first and Results(made[1], study).read(cell)["curve"]
