"""`sad doctor`: its output, and its exit code if a backend is wrong."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from sad.cli import doctor_facts
from sad.cli.main import app
from sadkernels import backends, selftest, tuning
from sadkernels.native import extension


@pytest.fixture
def doctor(monkeypatch):
    """Returns doctor(*arguments) -> result, on a machine where only `reference` and `cpu` run."""
    assert backends.why_not("cpu", "span_kl", torch.device("cpu")) is None  # the extension must be built
    runnable = ("reference", "cpu")
    monkeypatch.setattr(backends, "why_not", lambda name, *_: None if name in runnable else f"not [today], {name}")
    return lambda *arguments: CliRunner().invoke(app, ["doctor", *arguments], catch_exceptions=False)


def test_plain_lines_without_a_terminal(doctor):
    result = doctor()
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert any(line.split()[:2] == ["torch", torch.__version__] for line in lines)
    assert any("CPU extension" in line and "portable" in line for line in lines)
    for op, cases in (("span_kl", 8), ("topk_span_kl", 7)):
        agree = f"{cases} of {cases} cases agree"
        assert any(line.split()[:3] == [op, "cpu", "correct"] and agree in line for line in lines)
    assert any("triton" in line and line.endswith("cannot run here  not [today], triton") for line in lines)
    assert lines[-1] == "All 6 op-backend pairs that can run here are correct."
    assert "\x1b" not in result.output


def test_tables_on_a_terminal(doctor, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(Console, "is_terminal", True)
    output = doctor("--no-test").output
    assert "│" in output and "not [today], triton" in output
    assert "6 of 12 op-backend pairs can run here; no test was run." in output


def test_json(doctor):
    result = doctor("--json")
    found = json.loads(result.output)
    assert found["healthy"] is True
    assert found["packages"]["torch"] == {"version": torch.__version__}
    assert found["packages"]["triton"]["for"] == "the triton backend"
    assert found["hardware"]["threads"] == torch.get_num_threads()
    assert "portable" in found["builds"]["cpu_instruction_sets"]
    assert {(row["op"], row["backend"]) for row in found["backends"]} == {
        (op, name) for op in selftest.OPS for name in backends.PACKAGES
    }
    for row in found["backends"]:
        assert (row["self_test"] is None) == (row["backend"] in ("triton", "cuda")) == (row["why_not"] is not None)


def test_a_wrong_backend(doctor, monkeypatch):
    kernel = backends.implementation("cpu", "span_ids")
    monkeypatch.setattr(
        kernel, "span_ids_from_offsets", lambda offsets, *_, masks: torch.full(offsets.shape[:2], 7, dtype=torch.uint8)
    )
    result = doctor()
    assert result.exit_code == 1
    assert any(line.split()[:3] == ["span_ids", "cpu", "WRONG"] for line in result.output.splitlines())
    assert "span_ids on cpu: SpanIdsCase(rows=5, tokens=77" in result.output
    assert result.output.splitlines()[-1].startswith("A backend is wrong. Pass another one by name")
    found = doctor("--json")
    assert found.exit_code == 1
    assert json.loads(found.output)["healthy"] is False  # an infinite error becomes null, because JSON has no infinity


def test_missing_packages_and_compilers(doctor, monkeypatch):
    monkeypatch.setattr(doctor_facts, "OPTIONAL", {"no-such-package": "nothing"})
    monkeypatch.setattr(extension, "missing", lambda name: f"{name} was not built")
    monkeypatch.setattr(doctor_facts.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor_facts.os, "access", lambda path, mode: False)
    output = doctor("--no-test").output
    for words in (
        ["no-such-package", "not installed", "optional: nothing"],
        ["C++ compiler", "none found"],
        ["nvcc", "none found"],
        ["CPU extension", "not built"],
        ["CUDA extension", "not built"],
    ):
        assert any(all(word in line for word in words) for line in output.splitlines()), words


def test_a_gpu_machine(doctor, monkeypatch, tmp_path):
    """Shows an H100 with a driver for CUDA 13.1, and offers `sad tune` as long as there is no tuning file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SAD_TUNING", raising=False)
    card = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132)
    cuda = SimpleNamespace(
        architectures=lambda: ["80", "90", "90+PTX"],
        runtime_version=lambda: 13000,
        driver_version=lambda: 13010,
        emulated=lambda: False,
    )
    real = extension.load
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(extension, "missing", lambda name: None)
    monkeypatch.setattr(extension, "load", lambda name: cuda if name == "cuda" else real(name))
    output = doctor("--no-test").output
    assert "NVIDIA H100, compute capability 9.0, 80 GiB" in output
    assert "architectures 80, 90, 90+PTX; runtime 13.0, driver for 13.1\n" in output
    assert "tuning of GPU 0" in output and "none; `sad tune` measures this GPU in about a minute\n" in output
    monkeypatch.setenv("SAD_TUNING", "off")
    assert json.loads(doctor("--no-test", "--json").output)["hardware"]["gpus"][0]["tuning"] == "off: SAD_TUNING=off"
    tuning.reload()
    cuda.emulated = lambda: True
    assert "emulated on the CPU: SAD_CUDA_EMULATED is set\n" in doctor("--no-test").output


def test_this_machine():
    found = json.loads(CliRunner().invoke(app, ["doctor", "--json", "--no-test"], catch_exceptions=False).output)
    runs = {row["backend"] for row in found["backends"] if row["why_not"] is None}
    assert {"reference", "cpu"} <= runs
    assert all(row["why_not"] is None or len(row["why_not"]) > 20 for row in found["backends"])


def test_every_package_of_the_installation_is_shown():
    """The requirements, and those of the extras for users."""
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    required = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)[1]
    extras = re.search(r"^\[project.optional-dependencies\]\n(.*?)^docs = ", project, re.MULTILINE | re.DOTALL)[1]
    named, of_extras = ({*re.findall(r'"([a-z][\w-]*)>=', text)} for text in (required, extras))
    assert named == {*doctor_facts.REQUIRED}
    assert of_extras - {"pytest-benchmark"} <= {*doctor_facts.OPTIONAL}


def test_a_failing_program_has_no_lines():
    assert doctor_facts._lines("no-such-program-here") == []
    assert doctor_facts._lines(sys.executable, "-c", "print(1); exit(3)") == []
    assert doctor_facts._lines(sys.executable, "-c", "print(' a '); print(); print('b')") == ["a", "b"]
