"""Builds the compiled extensions. All metadata of the package is in pyproject.toml.

The extensions take raw pointers and do not include PyTorch. So they build in pip's isolated environment and work with every
version of PyTorch. The build uses ninja, because source files have flags of their own (one file per instruction set) and
different compilers.

Environment:
    SAD_BUILD_CPU, SAD_BUILD_CUDA: 0 skips the extension, 1 fails if it cannot be built, auto (default) builds it if a
        compiler is found and prints a message if not.
    CXX: The C++ compiler.
    MAX_JOBS: The number of parallel compilations.
    CUDA_HOME or CUDA_PATH: The CUDA toolkit. By default nvcc on the PATH, then /usr/local/cuda.
    TORCH_CUDA_ARCH_LIST: The GPU architectures, as for PyTorch's extensions: "8.6" or "8.0;9.0+PTX". By default all that
        are supported.
"""

import os
import platform
import re
import shutil
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
CSRC = ROOT / "csrc"
X86 = platform.machine().lower() in ("x86_64", "amd64")
PYTHON_INCLUDES = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_paths()["include"])]

CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-pthread"]
# The library names files relative to the check-out, not the folders of the machine that built it.
PREFIXES = {ROOT: ".", sysconfig.get_paths()["include"]: "python"}
PREFIX_MAPS = [f"-ffile-prefix-map={path}={name}" for path, name in PREFIXES.items()]
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
ISA_FLAGS = {
    "span_kl_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "span_kl_avx512.cpp": AVX512_FLAGS,
    "span_kl_avx512_bf16.cpp": [*AVX512_FLAGS, "-mavx512bf16"],
}
NVCC_FLAGS = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{CSRC}", f"-I{CSRC / 'cuda'}"]
CUDA_ARCHITECTURES = "8.0 8.6 8.9 9.0 10.0 12.0+PTX"
OLDEST_CUDA_ARCHITECTURE = 80


class Unavailable(Exception):
    """This machine lacks something that an extension needs."""


def build_choice(variable: str) -> str:
    """Returns the value of an environment variable: "0", "1" or "auto"."""
    value = os.environ.get(variable, "auto").lower()
    if value not in ("0", "1", "auto"):
        sys.exit(f"{variable}: expected 0, 1 or auto, got {value!r}")
    return value


def find_nvcc() -> str:
    """Returns the path of nvcc, which finds its own headers and libraries."""
    if not sys.platform.startswith("linux"):
        raise Unavailable(f"CUDA kernels are built on Linux, this is {sys.platform}")
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [Path(home) / "bin" / "nvcc" for home in homes]
    candidates += [Path(found)] if (found := shutil.which("nvcc")) else []
    for path in [*candidates, Path("/usr/local/cuda/bin/nvcc")]:
        if os.access(path, os.X_OK):
            return str(path)
    raise Unavailable("nvcc was not found; install the CUDA toolkit and set CUDA_HOME or put nvcc on the PATH")


def cuda_targets(nvcc: str) -> list[str]:
    """Returns the targets to compile for, such as ["sm_80", "sm_90", "compute_90"]: the wanted ones that nvcc supports."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    output = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    known = {int(number) for number in re.findall(r"sm_(\d+)", output)}
    binaries, ptx, dropped = [], [], []
    for word in re.split(r"[;,\s]+", wanted or CUDA_ARCHITECTURES):
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", word)
        if parts is None:
            raise Unavailable(f"TORCH_CUDA_ARCH_LIST: expected versions such as 8.6 or 9.0+PTX, got {word!r}")
        number = int(parts[1] + parts[2])
        if number not in known or number < OLDEST_CUDA_ARCHITECTURE:
            dropped.append(word)
            continue
        binaries.append(f"{number}{parts[3]}")
        ptx += [f"{number}{parts[3]}"] if parts[4] else []
    if not binaries:
        raise Unavailable(f"TORCH_CUDA_ARCH_LIST={wanted!r} has no version from 8.0 on that {nvcc} can compile for")
    if dropped:
        print(f"CUDA architectures skipped, because this nvcc or these kernels do not support them: {' '.join(dropped)}")
    if not wanted and not ptx:  # an older nvcc: PTX of its newest architecture supports newer GPUs
        ptx = binaries[-1:]
    return [*(f"sm_{x}" for x in dict.fromkeys(binaries)), *(f"compute_{x}" for x in dict.fromkeys(ptx))]


def gencode(targets: list[str]) -> list[str]:
    """Returns nvcc's flags for `cuda_targets`."""
    return [f"-gencode=arch=compute_{target.partition('_')[2]},code={target}" for target in targets]


class NativeExtension(Extension):
    """An extension that ninja builds."""

    def __init__(self, name: str, folder: Path, sources: list[Path], required: bool) -> None:
        relative = [str(path.relative_to(ROOT)) for path in sources]
        headers = [*CSRC.glob("*.h"), *folder.glob("*.h"), *folder.glob("*.cuh")]
        super().__init__(name, relative, depends=[str(x.relative_to(ROOT)) for x in sorted(headers)], optional=not required)
        self.required = required

    def write(self, n: ninja_syntax.Writer, target: Path) -> None:
        """Writes the ninja file that builds the library `target`."""
        raise NotImplementedError


class CpuExtension(NativeExtension):
    """The CPU kernels, with one source file per instruction set."""

    def __init__(self, required: bool) -> None:
        sources = [path for path in sorted((CSRC / "cpu").glob("*.cpp")) if X86 or path.name not in ISA_FLAGS]
        super().__init__("sadkernels.native._cpu", CSRC / "cpu", sources, required)

    def write(self, n: ninja_syntax.Writer, target: Path) -> None:
        link = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        includes = [f"-I{CSRC}", f"-I{CSRC / 'cpu'}", *PYTHON_INCLUDES]
        common = [*CXX_FLAGS, *PREFIX_MAPS, *includes, *(["-DSAD_X86=1"] if X86 else [])]
        n.variable("cxx", os.environ.get("CXX", "c++"))
        n.rule("compile", "$cxx $flags -MD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        n.rule("link", f"$cxx -shared -pthread {' '.join(link)} $in -o $out")
        objects = []
        for source in map(Path, self.sources):
            flags = " ".join([*common, *ISA_FLAGS.get(source.name, [])])
            objects += n.build(f"{source.stem}.o", "compile", str(ROOT / source), variables={"flags": flags})
        n.build(str(target), "link", objects)


class CudaExtension(NativeExtension):
    """The CUDA kernels, linked with the static CUDA runtime. They import without a driver and with every build of PyTorch.

    Raises:
        Unavailable: There is no nvcc, or it supports none of the wanted architectures.
    """

    def __init__(self, required: bool) -> None:
        folder = CSRC / "cuda"
        self.nvcc = find_nvcc()
        self.targets = cuda_targets(self.nvcc)
        super().__init__(
            "sadkernels.native._cuda", folder, [*sorted(folder.glob("*.cu")), folder / "bindings.cpp"], required
        )

    def write(self, n: ninja_syntax.Writer, target: Path) -> None:
        host = os.environ.get("CXX") if not os.environ.get("NVCC_CCBIN") else None
        n.variable("nvcc", " ".join([self.nvcc, *([f"-ccbin={host}"] if host and shutil.which(host) else [])]))
        n.rule("compile", "$nvcc $flags -MD -MF $out.d -c $in -o $out", depfile="$out.d", deps="gcc")
        n.rule("link", "$nvcc -shared -cudart static -Xlinker=--exclude-libs=ALL $in -o $out")
        names = " ".join(self.targets)
        flags = {".cu": gencode(self.targets), ".cpp": [*PYTHON_INCLUDES, f"'-DSAD_CUDA_ARCHS=\"{names}\"'"]}
        objects = []
        for source in map(Path, self.sources):
            own = " ".join([*NVCC_FLAGS, *flags[source.suffix]])
            objects += n.build(f"{source.stem}.o", "compile", str(ROOT / source), variables={"flags": own})
        n.build(str(target), "link", objects)


class NinjaBuild(build_ext):
    """Builds the extensions with ninja. An editable install keeps the object files and compiles only what changed."""

    def build_extension(self, ext: NativeExtension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        kept = ROOT / "build" / f"editable-{sys.implementation.cache_tag}"  # setuptools deletes its own build folder
        build = ((kept if getattr(self, "editable_mode", False) else Path(self.build_temp)) / ext.name).resolve()
        build.mkdir(parents=True, exist_ok=True)
        with open(build / "build.ninja", "w") as stream:
            ext.write(ninja_syntax.Writer(stream, width=10_000), target)
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(build)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            target.unlink(missing_ok=True)
            remove_from_source_tree(ext.name)
            message = f"{ext.name} was not built ({error}); the package works without it, on other backends"
            if ext.required:
                raise RuntimeError(message) from error
            self.warn(message)

    def run(self) -> None:
        if self.inplace or getattr(self, "editable_mode", False):
            for name in {"sadkernels.native._cpu", "sadkernels.native._cuda"} - {ext.name for ext in self.extensions}:
                remove_from_source_tree(name)
        super().run()


def remove_from_source_tree(name: str) -> None:
    """Removes a library that an older build left in the source tree."""
    for stale in ROOT.joinpath(*name.split(".")[:-1]).glob(f"{name.rpartition('.')[2]}.*.so"):
        stale.unlink()


def extensions() -> list[NativeExtension]:
    """Returns the extensions that this machine can build."""
    found = []
    for variable, make in (("SAD_BUILD_CPU", CpuExtension), ("SAD_BUILD_CUDA", CudaExtension)):
        if (choice := build_choice(variable)) == "0":
            continue
        try:
            found.append(make(required=choice == "1"))
        except Unavailable as reason:
            if choice == "1":
                sys.exit(f"{variable}=1: {reason}")
            print(f"The package is built without its CUDA kernels: {reason}")
    return found


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild})
