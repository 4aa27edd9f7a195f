"""Builds the CUDA kernels for the host, where every CUDA thread is a fiber, and caches the builds.

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
from collections.abc import Callable, Sequence
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
    needed = "#include <source_location>\n#include <ucontext.h>\nauto here = std::source_location::current();"
    done = subprocess.run(command, input=needed, capture_output=True, text=True)
    return f"the emulation needs C++20 and ucontext.h, which {compiler()} does not have" if done.returncode else None


@functools.cache
def library(sanitizer: str = "") -> Path:
    """Returns the path of the emulated extension. Builds it if its sources have changed, and removes older builds.

    Args:
        sanitizer: A key of `SANITIZERS`.
    """
    flags = [*FLAGS, *SANITIZERS[sanitizer]]
    sources = [*sorted((CSRC / "cuda").glob("*.cu")), CSRC / "cuda" / "emulation.cpp"]

    def build(built: Path) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda source: _compiled(source, built.parent, flags), sources))
        # The linker keeps the first of equal inline functions, so those with a sanitizer come first.
        _run([compiler(), *flags, "-shared", *objects, str(_bindings()), "-o", str(built)])

    variant = sanitizer.replace(",", "-") or "plain"
    return _cached(variant, f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}", flags, build)


def _bindings() -> Path:
    """Returns the compiled Python names. All builds share them: a sanitizer would triple the time to compile them."""
    flags = [*FLAGS, "-O0"]
    return _cached("bindings", "bindings.o", flags, lambda built: _compiled(CSRC / "cuda" / "bindings.cpp", built, flags))


@functools.cache
def program(source: Path) -> Path:
    """Returns the path of a program of one source file that runs kernels on the host."""
    flags = [*FLAGS, "-O1"]
    command = [compiler(), *flags, "-x", "c++", str(source), str(CSRC / "cuda" / "emulation.cpp")]
    return _cached(source.stem, source.stem, flags, lambda built: _run([*command, "-o", str(built)]), [source])


def _cached(variant: str, name: str, flags: list[str], build: Callable[[Path], object], more: Sequence[Path] = ()) -> Path:
    """Returns the path of a file that `build` makes, in a folder for this state of its sources."""
    BUILDS.mkdir(parents=True, exist_ok=True)
    with open(BUILDS / f"{variant}.lock", "w") as lock:  # two test runs share the folder
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = BUILDS / f"{variant}-{_fingerprint(flags, more)}"
        if not (folder / name).exists():
            for older in BUILDS.glob(f"{variant}-????????????"):
                shutil.rmtree(older)
            folder.mkdir()
            build(folder / "unfinished")
            (folder / "unfinished").rename(folder / name)
            for made in folder.glob("*.c*.o"):
                made.unlink()
    return folder / name


def _compiled(source: Path, target: Path, flags: list[str]) -> str:
    """Compiles a source file, into a file with its name if `target` is a folder."""
    if target.is_dir():
        target = target / f"{source.name}.o"
    _run([compiler(), *flags, "-x", "c++", "-c", str(source), "-o", str(target)])
    return str(target)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")


def _fingerprint(flags: list[str], more: Sequence[Path]) -> str:
    """Returns a 12-digit hash of everything that the build depends on."""
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(repr((flags, version)).encode())
    for path in sorted([*CSRC.glob("*.h"), *(CSRC / "cuda").iterdir(), *more]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
