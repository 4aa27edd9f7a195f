"""Reports the registers and spills of every CUDA kernel on every architecture, without a GPU.

    python benchmarks/cuda_build.py [--arch 80 90] [--library FILE] [--out FILE]

Compiles each file of `csrc/cuda` with the flags of `setup.py`, once per architecture. Writes the assembler's report for
every kernel (registers, spilled bytes, static shared memory, stack), the instructions per column of its passes over a row
(see `hot_loops.py`) and the build time of the file in seconds. Exits with 1 if a kernel spills. With `--library` it reads
the architectures that a built extension has and compiles only the others. The spilled bytes of these kernels are all bytes
that they move from and to local memory.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import RESULTS, write_csv
from hot_loops import innermost_loops, local_bytes, per_column, run_tool

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import setup  # noqa: E402  for the path and the flags of nvcc

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
_CASES = ("forward", "reverse", "jsd", "general")  # the enum Case in divergence.cuh
COMPILE_SECONDS = 600  # one file for one architecture takes about 10 seconds
_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def find_nvcc() -> str:
    """Returns the path of nvcc."""
    try:
        return setup.find_nvcc()
    except setup.Unavailable as reason:
        raise SystemExit(str(reason)) from None


@functools.cache
def nvcc_version(nvcc: str) -> str:
    """Returns the release of nvcc, such as "13.0"."""
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    return re.search(r"release (\d+\.\d+)", output)[1]


_USAGE = re.compile(
    r"Function (?P<name>\w+):\s+REG:(?P<registers>\d+) STACK:(?P<stack>\d+) SHARED:(?P<shared>\d+) LOCAL:\d+"
)


def parse(report: str) -> Iterator[dict[str, object]]:
    """Yields the kernels in the output of `nvcc -Xptxas -v`."""
    for found in _KERNEL.finditer(report):
        shared = re.search(r"(\d+) bytes smem", found["rest"])
        yield {
            "kernel": found["name"],
            "registers": int(found["registers"]),
            "spilled_bytes": int(found["stores"]) + int(found["loads"]),
            "stack_bytes": int(found["stack"]),
            "shared_bytes": int(shared[1]) if shared else 0,
        }


def short_names(mangled: list[str]) -> list[str]:
    """Returns demangled names, such as `gradient_kernel<Bfloat16, forward>` for `_ZN3sad4cuda...`."""
    text = "\n".join(mangled)
    done = subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True, timeout=60)
    names = []
    for line in done.stdout.splitlines():
        line = re.sub(r"sad::(cuda::)?(\(anonymous namespace\)::)?", "", line.removeprefix("void "))
        line = re.sub(r"\(Case\)(\d)", lambda found: _CASES[int(found[1])], line)
        names.append(re.sub(r"\(\w+\)(?=\d)", "", line).rpartition("(")[0])  # without the parameters
    return names


def compile_one(nvcc: str, source: Path, architecture: int) -> list[dict[str, object]]:
    """Returns the rows of the CSV file, one per kernel of `source`."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        command = [nvcc, *setup.NVCC_FLAGS, *setup.gencode([f"sm_{architecture}"]), "-Xptxas=-v", "-cubin", str(source)]
        done = subprocess.run([*command, "-o", cubin], capture_output=True, text=True, timeout=COMPILE_SECONDS)
        if done.returncode:
            raise SystemExit(f"{source.name} for sm_{architecture} does not compile:\n{done.stderr}")
        seconds = round(time.perf_counter() - began, 1)
        code = machine_code(cubin)
    where = {"file": source.name, "architecture": f"sm_{architecture}", "compiler": f"nvcc {nvcc_version(nvcc)}"}
    return complete([where | row | {"build_seconds": seconds} for row in parse(done.stderr)], code)


def read_library(nvcc: str, library: Path) -> list[dict[str, object]]:
    """Returns the rows of the kernels in an extension that this `nvcc` has built.

    Shared memory includes the 1024 bytes that the driver reserves from sm_90 on.
    """
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        run_tool("cuobjdump", "-xelf", "all", library.resolve(), folder=Path(folder))
        for cubin in sorted(Path(folder).glob("*.cubin")):
            code = machine_code(cubin)
            where = {"file": library.name, "architecture": cubin.suffixes[-2][1:], "compiler": f"nvcc {nvcc_version(nvcc)}"}
            found = [
                where
                | {
                    "kernel": usage["name"],
                    "registers": int(usage["registers"]),
                    "spilled_bytes": local_bytes(code[usage["name"]]),
                    "stack_bytes": int(usage["stack"]),
                    "shared_bytes": int(usage["shared"]),
                    "build_seconds": "",
                }
                for usage in _USAGE.finditer(run_tool("cuobjdump", "-res-usage", cubin))
            ]
            rows += complete(found, code)
    if not rows:
        raise SystemExit(f"--library: expected an extension with CUDA kernels, got {library}")
    return rows


def machine_code(cubin: Path) -> dict[str, str]:
    """Returns the listing of each kernel by its mangled name."""
    return dict(re.findall(r"^\.text\.(\w+):(.*?)(?=^\.text\.|\Z)", run_tool("nvdisasm", "-c", cubin), re.M | re.S))


def complete(rows: list[dict[str, object]], code: dict[str, str]) -> list[dict[str, object]]:
    """Returns rows with short names instead of mangled ones, and with the work per column."""
    names = short_names([row["kernel"] for row in rows])
    work = [per_column(innermost_loops(code[row["kernel"]]), _bytes_per_column(name)) for row, name in zip(rows, names)]
    return [row | {"kernel": name, **w} for row, name, w in zip(rows, names, work)]


def _bytes_per_column(name: str) -> int:
    """Returns the bytes that a pass of a kernel reads per column: both sides, or the student alone."""
    element = 4 if "<float" in name else 2
    return element if name.startswith(("topk", "scale")) else 2 * element


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities, such as 80 90")
    parser.add_argument("--library", type=Path, help="a built extension; its architectures are not compiled again")
    parser.add_argument("--out", type=Path, default=RESULTS / "cuda_offline.csv")
    options = parser.parse_args()
    nvcc = find_nvcc()
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    read = [] if options.library is None else read_library(nvcc, options.library)
    built = {row["architecture"] for row in read}
    jobs = [(source, number) for number in options.arch if f"sm_{number}" not in built for source in sources]
    rows: list[dict[str, object]] = []
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        for found in itertools.chain([read], pool.map(lambda job: compile_one(nvcc, *job), jobs)):
            rows += found
            for row in found:
                spilled = f", {row['spilled_bytes']} BYTES SPILLED" if row["spilled_bytes"] else ""
                print(f"{row['architecture']} {row['kernel']}: {row['registers']} registers{spilled}", flush=True)
    if not rows:
        raise SystemExit(
            "nvcc reported no kernel: the format of -Xptxas -v has changed, and benchmarks/cuda_build.py reads it"
        )
    write_csv(options.out, rows)
    spilling = sum(row["spilled_bytes"] > 0 for row in rows)
    print(f"{len(rows)} kernels, {spilling} with spills; {options.out}")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
