"""Builds the compiled extensions; everything else about the package is in pyproject.toml.

The extensions know raw pointers, neither PyTorch nor its headers, so they build in pip's isolated environment in
seconds and fit every PyTorch. Each source has flags of its own (one file per instruction set), hence ninja.

Environment: `CXX` (compiler), `MAX_JOBS` (parallel compilations), `SAD_BUILD_CPU=0` (leave the extension out).
"""

import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import ninja
import pybind11
from ninja import ninja_syntax
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc" / "cpu"
X86 = platform.machine().lower() in ("x86_64", "amd64")

CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-pthread"]
ISA_FLAGS = {
    "span_kl_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "span_kl_avx512.cpp": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"],
}


def cpu_sources() -> list[Path]:
    """The sources for this processor family; the x86 instruction sets are left out elsewhere."""
    return [path for path in sorted(CSRC.glob("*.cpp")) if X86 or path.name not in ISA_FLAGS]


class NinjaBuild(build_ext):
    """Compiles through a ninja file, which rebuilds what changed (headers included) in an editable install."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        build = (Path(self.build_temp) / ext.name).resolve()
        build.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{path}" for path in (CSRC.parent, CSRC, pybind11.get_include(), sysconfig.get_paths()["include"])]
        defines = ["-DSAD_X86=1"] if X86 else []
        link = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        with open(build / "build.ninja", "w") as stream:
            n = ninja_syntax.Writer(stream)
            n.variable("cxx", os.environ.get("CXX", "c++"))
            n.rule("compile", "$cxx $flags -MD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
            n.rule("link", "$cxx -shared -pthread $flags $in -o $out")
            objects = []
            for source in map(Path, ext.sources):
                flags = [*CXX_FLAGS, *ISA_FLAGS.get(source.name, []), *includes, *defines]
                objects += n.build(f"{source.stem}.o", "compile", str(ROOT / source), variables={"flags": " ".join(flags)})
            n.build(str(target), "link", objects, variables={"flags": " ".join(link)})
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(build)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            in_source_tree = ROOT / "sadkernels" / "native" / target.name
            for stale in (target, in_source_tree):  # an older build must not pass for this one
                stale.unlink(missing_ok=True)
            raise RuntimeError(f"{ext.name} was not built ({error}); the `reference` backend will be used") from error

    def run(self) -> None:
        try:
            super().run()
        except RuntimeError as error:
            if os.environ.get("SAD_BUILD_CPU") == "1":
                raise
            self.warn(str(error))


def extensions() -> list[Extension]:
    if os.environ.get("SAD_BUILD_CPU", "auto") == "0":
        return []
    sources = [str(path.relative_to(ROOT)) for path in cpu_sources()]
    headers = [str(path.relative_to(ROOT)) for path in sorted(CSRC.parent.glob("*.h")) + sorted(CSRC.glob("*.h"))]
    return [Extension("sadkernels.native._cpu", sources, depends=headers, optional=os.environ.get("SAD_BUILD_CPU") != "1")]


setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild})
