"""Downloads the wheels that `run_gpu.sh` installs on a machine without a network.

    python benchmarks/gpu_run/wheels.py [--out wheels] [--python 3.12]

PyTorch, Triton, nvcc and what they depend on must be on that machine. The wheels have about 20 MB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PACKAGES = (
    *("transformers", "peft", "typer", "rich"),  # sad
    *("liger-kernel", "trl"),  # the benchmark
    *("pybind11", "ninja"),  # the build of the CUDA extension
    *("pytest", "pytest-xdist", "execnet", "iniconfig", "pluggy", "hypothesis", "sortedcontainers"),  # the tests
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64", "linux_x86_64")
LIMIT_MB = 60  # 64 MiB may travel to the machine, with the sources


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("wheels"), help="folder, must be empty; default: %(default)s")
    parser.add_argument("--python", default="3.12", help="Python version of the machine; default: %(default)s")
    options = parser.parse_args()
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"--out: {options.out} is not empty; two versions of a package cannot be installed together")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", options.python, "--dest", str(options.out)]
    command += [x for platform in PLATFORMS for x in ("--platform", platform)]
    done = subprocess.run([*command, *PACKAGES], timeout=600)
    size = sum(path.stat().st_size for path in options.out.glob("*.whl")) / 1e6
    print(f"{options.out}: {size:.0f} MB")
    if size > LIMIT_MB:
        print(f"expected at most {LIMIT_MB} MB; remove a package that the machine has", file=sys.stderr)
    return done.returncode or int(size > LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
