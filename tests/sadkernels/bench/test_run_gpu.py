"""`benchmarks/run_gpu.sh`: a rehearsal on the CPU, and what survives a crash, a hang, a lost device and a second run."""

from __future__ import annotations

import ast
import csv
import json
import os
import runpy
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.sadkernels.roofline import BENCHMARKS

ROOT = BENCHMARKS.parent
MAX_FILES = 8  # the machine returns no more


@pytest.fixture
def gpu_run(monkeypatch):
    """Returns the modules `runner` and `stages`."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_run import runner, stages

    monkeypatch.setattr(runner.machine, "describe", lambda: dict.fromkeys(runner.machine.COLUMNS, "x"))
    return runner, stages


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def environment() -> dict[str, str]:
    paths = [str(ROOT / "python"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def test_a_stage_survives_the_crash_of_the_one_before_it(tmp_path):
    """The script itself, with three of the stages of its rehearsal."""
    only = [x for stage in ("crash", "hang", "span_kl reference") for x in ("--only", stage)]
    command = ["bash", str(BENCHMARKS / "run_gpu.sh"), "--rehearse", *only, str(tmp_path)]
    env = environment() | {"PYTHON": sys.executable}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    stages = {row["stage"]: row["status"] for row in read(tmp_path / "stages.csv")}
    assert stages == {"crash": "crashed", "hang": "stopped", "span_kl reference": "passed"}
    assert [row["provider"] for row in read(tmp_path / "span_kl.csv")] == ["pytorch", "sad-reference"]
    assert "this stage does not end" in (tmp_path / "run.log").read_text()


def test_every_stage_starts_and_writes_its_rows(gpu_run, tmp_path, monkeypatch):
    """In this process, because a new one needs seconds to import PyTorch. The rehearsal starts a process per stage."""
    _, stages = gpu_run
    from sadkernels.bench import measure

    monkeypatch.setattr(measure, "copy_bandwidth", lambda device: 1e9)
    ran = 0
    for stage in stages.rehearsal_stages(tmp_path):
        script, *arguments = stage.command[1:]
        if not script.startswith("benchmarks/"):
            continue
        output = ["--append", "--out", str(tmp_path / stage.csv)] if stage.csv else []
        monkeypatch.setattr(sys, "argv", [script, *arguments, *output])
        main = runpy.run_path(str(ROOT / script))["main"]
        if stage.csv == stages.PLAN:
            monkeypatch.setitem(main.__globals__["_run_in_process"].__globals__, "subprocess", InThisProcess(main))
        is_harness = main.__module__ == "harness"
        assert (main("", "") if is_harness else main()) == 0, stage.name
        ran += 1
    assert ran == 6
    providers = {path.name: [row["provider"] for row in read(path)] for path in tmp_path.glob("*span_kl.csv")}
    assert providers["span_kl.csv"] == ["pytorch", "sad-reference", "pytorch-gathered"]  # of two stages
    assert providers["linear_span_kl.csv"] == ["pytorch", "matrix-products", "liger", "sad-reference"]
    assert providers["topk_span_kl.csv"] == ["pytorch", "sad-reference"]
    assert all(row["ms"] for row in read(tmp_path / "span_kl.csv"))
    assert [row["status"] for row in read(tmp_path / "plan.csv")] == ["ok"]


class InThisProcess:
    """Stands in for `subprocess` in check_plan.py and runs the case without a new process."""

    CompletedProcess, TimeoutExpired = subprocess.CompletedProcess, subprocess.TimeoutExpired

    def __init__(self, main) -> None:
        self._run = main.__globals__["run"]

    def run(self, command, timeout, **options):
        given = json.loads(command[-1])
        from sad.planner.request import PlanRequest

        found = self._run(PlanRequest(**given["request"]), given["mode"], torch.device(given["device"]))
        return self.CompletedProcess(command, 0, json.dumps(found), "")


def test_the_stages_of_a_gpu_are_real_commands(gpu_run):
    """Every script, provider and case in the table exists, and the limits leave time for the most valuable stages."""
    _, stages = gpu_run
    from sadkernels.bench.cases import parse_case
    from sadkernels.bench.providers import NAMES

    table = stages.gpu_stages()
    assert len({stage.name for stage in table}) == len(table)
    for stage in table:
        words = stage.command
        for option, word in pairwise(words):
            assert option != "--provider" or word in NAMES, stage.name
            assert option != "--case" or parse_case(word).rows == 8192, stage.name
        assert all((ROOT / word).exists() for word in words if word.startswith(("benchmarks/", "tests/"))), stage.name
        assert not stage.csv or stage.csv in (stages.SPAN_KL, stages.LINEAR, stages.TOPK, stages.PLAN)
    assert sum(stage.limit for stage in table[:4]) < 540
    assert len({stage.csv for stage in table} - {""}) + 2 <= MAX_FILES  # and the log and the table of stages


def python(stages, name: str, code: str, limit: float = 20, **options):
    return stages.Stage(name, limit, [sys.executable, "-c", code], **options)


def test_a_stopped_stage_takes_its_children_along(gpu_run, tmp_path):
    runner, stages = gpu_run
    child = tmp_path / "child"
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid))\n"
        "child.wait()"
    )
    run = runner.Run(tmp_path, dict(os.environ), 60)
    assert run.stage(python(stages, "hangs", code, limit=3)) == "stopped"
    pid = child.read_text()
    state = Path(f"/proc/{pid}/stat")
    deadline = time.monotonic() + 5
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert run.failed == []  # a lack of time is no fault
    run.close()


def test_statuses_and_a_second_run(gpu_run, tmp_path):
    runner, stages = gpu_run
    marker = tmp_path / "ran"
    count = f"open({str(marker)!r}, 'a').write('x')"
    table = [
        python(stages, "good", count),
        python(stages, "bad", "raise SystemExit(1)"),
        python(stages, "unproved", "raise SystemExit(1)", proves=False),
        python(stages, "built", count, needs_build=True),
        python(stages, "absent", count, missing="no such tool"),
        stages.Stage("nothing", 20, ["/no/such/program"]),
    ]
    run = runner.Run(tmp_path, dict(os.environ), 60)
    statuses = ["passed", "failed", "failed", "not run", "not run", "failed"]
    assert [run.stage(stage) for stage in table] == statuses
    assert run.failed == ["bad", "nothing"]
    run.close()
    again = runner.Run(tmp_path, dict(os.environ), 60, resume=True)
    assert [again.stage(stage) for stage in table] == statuses and marker.read_text() == "x"
    again.close()
    late = runner.Run(tmp_path, dict(os.environ), 1, resume=True)
    assert late.stage(table[1]) == "not run" and read(tmp_path / "stages.csv")[-1]["reason"] == "no time left"
    late.close()
    fresh = runner.Run(tmp_path, dict(os.environ), 60)
    assert fresh.stage(table[0]) == "passed" and marker.read_text() == "xx"
    fresh.close()


CRASHES = """
import csv, os, signal, sys
path, continued = sys.argv[sys.argv.index("--out") + 1], "--after-crash" in sys.argv
with open(path, "a", newline="") as stream:
    writer = csv.DictWriter(stream, ["provider", "status"])
    if not continued:
        writer.writeheader()
    writer.writerow({"provider": "second" if continued else "first", "status": "failed" if continued else "ok"})
assert "--append" in sys.argv
os.kill(os.getpid(), signal.SIGKILL) if not continued else sys.exit(code)
"""


def test_a_benchmark_starts_again_after_a_crash(gpu_run, tmp_path):
    runner, stages = gpu_run
    for code, attempts in ((0, "2"), (runner.DEVICE_LOST, "4")):
        run = runner.Run(tmp_path, dict(os.environ), 60)
        script = CRASHES.replace("code", str(code))
        assert run.stage(python(stages, "bench", script, csv=stages.SPAN_KL)) == "failed"
        run.close()
        (row,) = read(tmp_path / "stages.csv")
        assert row["attempts"] == attempts
    runner.Run(tmp_path, dict(os.environ), 1, resume=True).close()
    assert {row["status"] for row in read(tmp_path / stages.SPAN_KL)} == {"ok"}  # the others are measured again


def test_a_benchmark_continues_after_the_provider_that_ended_it(gpu_run, tmp_path, monkeypatch):
    import harness

    from sadkernels.bench import measure
    from sadkernels.bench.providers import PROVIDERS, Provider

    def loses_the_device(problem):
        monkeypatch.setattr(measure, "_works", lambda device: False)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    pytorch = PROVIDERS["span_kl"][0]
    providers = [pytorch, Provider("liger", loses_the_device), Provider("sad-cuda", None), Provider("sad-cpu", pytorch.loss)]
    monkeypatch.setitem(PROVIDERS, "span_kl", providers)
    monkeypatch.setattr(measure, "copy_bandwidth", lambda device: 1e9)
    options = ["--case", "4,9,fp32,0.5", "--device", "cpu", "--in-pairs", "--seconds", "0", "--append"]

    def bench(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["bench", *options, *more, "--out", str(tmp_path / "run.csv")])
        return harness.main("a benchmark", "span_kl")

    assert bench() == harness.DEVICE_LOST
    assert [row["status"] for row in read(tmp_path / "run.csv")] == ["ok", "failed"]
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(PROVIDERS, "span_kl", providers)
    monkeypatch.setattr(measure, "copy_bandwidth", lambda device: 1e9)
    assert bench("--after-crash") == 1  # a backend of sad failed: the process ended while sad-cuda ran
    rows = {row["provider"]: row for row in read(tmp_path / "run.csv")}
    assert [row["status"] for row in rows.values()] == ["ok", "failed", "failed", "ok"]
    assert rows["sad-cuda"]["reason"] == "the process ended while this provider ran"
    assert "illegal memory access" in rows["liger"]["reason"] and rows["sad-cpu"]["times_pytorch"]


def test_every_process_has_a_time_limit():
    calls = ("run", "call", "check_call", "check_output", "communicate")
    for path in [*BENCHMARKS.rglob("*.py"), *(ROOT / "sadkernels" / "bench").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in calls
            if is_call and isinstance(node.func.value, ast.Name) and node.func.value.id == "subprocess":
                assert any(keyword.arg == "timeout" for keyword in node.keywords), f"{path.name}:{node.lineno}"
