"""The builds of `setup.py` with and without nvcc, and the registers that the kernels use."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import pytest

import setup
from tests.sadkernels.cuda.emulated import ROOT
from tests.sadkernels.roofline import check_roofline

CODES = "sm_75 sm_80 sm_86 sm_87 sm_89 sm_90 sm_90a"  # as nvcc of CUDA 12.0 prints them


@pytest.fixture
def older_nvcc(tmp_path) -> str:
    """Returns an nvcc that does not know Blackwell."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\nprintf '%s\\n' {CODES}\n")
    nvcc.chmod(0o755)
    return str(nvcc)


@pytest.mark.parametrize(
    ("wanted", "targets"),
    [
        ("", ["sm_80", "sm_86", "sm_89", "sm_90", "compute_90"]),
        ("8.6", ["sm_86"]),
        ("8.0;8.6+PTX", ["sm_80", "sm_86", "compute_86"]),
        ("7.5 8.0, 9.0a 12.0+PTX", ["sm_80", "sm_90a"]),
    ],
)
def test_architectures_are_limited_to_those_of_nvcc(monkeypatch, older_nvcc, wanted, targets):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    assert setup.cuda_targets(older_nvcc) == targets


@pytest.mark.parametrize(("wanted", "message"), [("7.5 10.0", "no version from 8.0 on"), ("Hopper", "got 'Hopper'")])
def test_invalid_architectures(monkeypatch, older_nvcc, wanted, message):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    with pytest.raises(setup.Unavailable, match=message):
        setup.cuda_targets(older_nvcc)


def test_cuda_home_comes_before_the_path(monkeypatch, older_nvcc):
    monkeypatch.setenv("CUDA_HOME", str(Path(older_nvcc).parents[1]))
    assert setup.find_nvcc() == older_nvcc


def test_without_nvcc(monkeypatch, capsys):
    monkeypatch.setattr(setup.os, "access", lambda path, mode: False)
    monkeypatch.setenv("SAD_BUILD_CUDA", "auto")
    assert [extension.name for extension in setup.extensions()] == ["sadkernels.native._cpu"]
    assert "without its CUDA kernels: nvcc was not found; install the CUDA toolkit" in capsys.readouterr().out
    monkeypatch.setenv("SAD_BUILD_CUDA", "1")
    with pytest.raises(SystemExit, match="SAD_BUILD_CUDA=1: nvcc was not found"):
        setup.extensions()
    monkeypatch.setenv("SAD_BUILD_CUDA", "yes")
    with pytest.raises(SystemExit, match="SAD_BUILD_CUDA: expected 0, 1 or auto, got 'yes'"):
        setup.extensions()


def wheel(folder: Path, **environment: str) -> Path:
    """Builds a wheel from a copy of the sources and unpacks it. Leaves out the CPU extension to save time."""
    copy = folder / "source"
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "constraints.txt", "README.md", "LICENSE"):
        copy.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy)
    for name in ("csrc", "sadkernels", "python"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-cache-dir"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "-w", str(folder), str(copy)],
        env=os.environ | {"SAD_BUILD_CPU": "0"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    (built,) = folder.glob("*.whl")
    zipfile.ZipFile(built).extractall(folder / "wheel")
    return folder / "wheel"


def test_a_wheel_without_cuda(tmp_path):
    unpacked = wheel(tmp_path, SAD_BUILD_CUDA="0")
    assert (unpacked / "sadkernels" / "native" / "cuda" / "span_kl.py").is_file()
    assert not list(unpacked.rglob("*.so"))


# Answers as nvcc does, and makes empty files in place of objects and libraries.
STAND_IN = """#!/bin/sh
case "$1" in --list-gpu-code) echo sm_86; exit;; esac
echo "$@" >> {log}
while [ $# -gt 0 ]; do
    case "$1" in -o|-MF) : > "$2";; esac
    shift
done
"""


def test_a_wheel_with_cuda(tmp_path):
    """The commands and the place of the library, with a stand-in for nvcc. The next test has a real library."""
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(STAND_IN.format(log=tmp_path / "log"))
    nvcc.chmod(0o755)
    unpacked = wheel(tmp_path, SAD_BUILD_CUDA="1", TORCH_CUDA_ARCH_LIST="8.6", CUDA_HOME=str(tmp_path / "cuda"))
    (library,) = unpacked.rglob("*.so")
    assert library.name.startswith("_cuda.") and library.parent == unpacked / "sadkernels" / "native"
    commands = (tmp_path / "log").read_text().splitlines()
    compiled = [command for command in commands if " -c " in command]
    assert len(compiled) == len([*(ROOT / "csrc" / "cuda").glob("*.cu")]) + 1
    assert sum("-gencode=arch=compute_86,code=sm_86" in command for command in compiled) == len(compiled) - 1
    assert sum("-cudart static" in command for command in commands) == len(commands) - len(compiled) == 1


@pytest.fixture(scope="module")
def cuda_library(tmp_path_factory, nvcc) -> Path:
    """Returns the library that the installation has built from these sources, or builds it."""
    sources = [*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc" / "cuda").iterdir(), ROOT / "setup.py"]
    for installed in (ROOT / "sadkernels" / "native").glob("_cuda.*.so"):
        if installed.stat().st_mtime > max(path.stat().st_mtime for path in sources):
            return installed
    (built,) = wheel(tmp_path_factory.mktemp("wheel"), SAD_BUILD_CUDA="1", TORCH_CUDA_ARCH_LIST="9.0").rglob("*.so")
    return built


IMPORTED = """
import sys
sys.path.insert(0, {folder!r})
import _cuda
print(_cuda.emulated(), _cuda.runtime_version() >= 11080, _cuda.device_count() >= 0, *_cuda.architectures())
if _cuda.driver_version() == 0:
    try:
        _cuda.span_ids_from_offsets(_cuda.SpanIdsParams(batch=1, tokens=1), device=0, stream=0)
    except RuntimeError as error:
        assert "driver" in str(error)
"""


def test_the_library_imports_without_a_driver(tmp_path, cuda_library):
    code = IMPORTED.format(folder=str(cuda_library.parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"False True True( (sm|compute)_\d+[af]?)+\n", done.stdout), done.stdout
    if readelf := shutil.which("readelf"):
        needed = subprocess.run([readelf, "-d", str(cuda_library)], capture_output=True, text=True, check=True).stdout
        assert "libcudart" not in needed and "libcuda.so" not in needed  # linked statically; loaded at run time


def test_no_kernel_spills_and_the_hot_loops_have_not_grown(tmp_path, cuda_library):
    """Checks the architectures of the library, and compiles for sm_86 and sm_90 if it does not have them."""
    command = [sys.executable, str(ROOT / "benchmarks" / "cuda_build.py"), "--arch", "86", "90"]
    command += ["--library", str(cuda_library), "--out", str(tmp_path / "figures.csv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = list(csv.DictReader((tmp_path / "figures.csv").open()))
    kernels = defaultdict(set)
    for row in rows:
        kernels[row["architecture"]].add(row["kernel"])
    assert {"sm_86", "sm_90"} <= kernels.keys() and all(names == kernels["sm_86"] for names in kernels.values())
    assert check_roofline(rows) == 20 * len(kernels), "ten kernels of two dtypes on each architecture"
    assert all(int(row["registers"]) <= 128 for row in rows), "two blocks of 256 threads, or one of 512, no longer fit an SM"
