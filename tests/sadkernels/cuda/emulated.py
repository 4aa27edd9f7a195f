"""Builds the CUDA kernels for the host, where every CUDA thread is a thread, and caches the builds.

The C++ compiler compiles the sources and the binding of the real extension with `csrc/cuda/emulation.h`.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parents[3]
CSRC = ROOT / "csrc"
BUILDS = ROOT / "build" / "emulated"
SANITIZERS = {
    "": ["-O2"],
    "address,undefined": [
        "-O1",
        "-g1",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
    ],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
}
FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-pthread", "-DSAD_EMULATED", f"-I{CSRC}", f"-I{CSRC / 'cuda'}"]
FLAGS += [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_paths()["include"])]


def compiler() -> str:
    return os.environ.get("CXX", "g++")


@functools.cache
def unbuildable() -> str | None:
    """Returns why this machine cannot build the kernels for the host, or None."""
    if shutil.which(compiler()) is None:
        return f"the emulation needs a C++20 compiler and there is no {compiler()}"
    command = [compiler(), "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    done = subprocess.run(command, input="#include <barrier>\nstd::barrier<> b(1);", capture_output=True, text=True)
    return f"the emulation needs C++20's std::barrier, which {compiler()} does not have" if done.returncode else None


@functools.cache
def library(sanitizer: str = "", defines: tuple[str, ...] = ()) -> Path:
    """Returns the path of the emulated extension. Builds it if its sources have changed, and removes older builds.

    Args:
        sanitizer: A key of `SANITIZERS`.
        defines: Macros to define, such as a fault that a test must find.
    """
    flags = [*FLAGS, *SANITIZERS[sanitizer], *(f"-D{name}" for name in defines)]
    variant = "-".join(x.replace(",", "-") for x in (sanitizer or "plain", *defines)).lower()
    BUILDS.mkdir(parents=True, exist_ok=True)
    with open(BUILDS / f"{variant}.lock", "w") as lock:  # two test runs share the folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = BUILDS / f"{variant}-{_fingerprint(flags)}"
        built = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
        if not built.exists():
            for older in BUILDS.glob(f"{variant}-????????????"):
                shutil.rmtree(older)
            folder.mkdir()
            _build(built, flags)
    return built


def _build(built: Path, flags: list[str]) -> None:
    def compiled(source: Path) -> str:
        target = str(built.parent / f"{source.name}.o")
        _run([compiler(), *flags, "-x", "c++", "-c", str(source), "-o", target])
        return target

    sources = [*sorted((CSRC / "cuda").glob("*.cu")), CSRC / "cuda" / "bindings.cpp"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    unfinished = built.with_suffix(".unfinished")
    _run([compiler(), *flags, "-shared", *objects, "-o", str(unfinished)])
    unfinished.rename(built)
    for made in objects:
        os.unlink(made)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")


def _fingerprint(flags: list[str]) -> str:
    """Returns a 12-digit hash of everything that the build depends on."""
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(repr((flags, version)).encode())
    for path in sorted([*CSRC.glob("*.h"), *(CSRC / "cuda").iterdir()]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
