"""Prepares the machine (wheels, the CUDA extension) and describes it (card, driver, clocks)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

from gpu_run.processes import Running, run

ROOT = Path(__file__).resolve().parents[2]
_QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,clocks_event_reasons.active"
COLUMNS = ("card", "driver", "sm_mhz", "memory_mhz", "sm_mhz_max", "celsius", "watts", "throttle_reasons")
# TRL imports these packages, but its measured losses do not use them.
_STUBBED = ("datasets", "pandas")
_STUB = '''"""Stands in for a package that TRL imports and its losses do not use."""
__version__ = "0"


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
'''


def describe() -> dict[str, str]:
    """Returns the card, its driver and its clocks at this moment. Empty values without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return dict.fromkeys(COLUMNS, "")
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(COLUMNS, "no answer")
    values = [value.strip() for value in done.stdout.partition("\n")[0].split(",")]
    return dict(zip(COLUMNS, values)) if len(values) == len(COLUMNS) else dict.fromkeys(COLUMNS, "unknown")


def compute_capability() -> str | None:
    """Returns the version of the GPU, such as "9.0", or None if PyTorch sees no GPU."""
    code = "import torch; print('%d.%d' % torch.cuda.get_device_capability() if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    return done.stdout.strip() or None


def install(wheels: Path, site: Path, log: IO[str]) -> dict[str, str]:
    """Installs the wheels into the folder `site`, not the package, and returns the environment of the stages."""
    found = sorted(map(str, wheels.glob("*.whl")))
    if found:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
        outcome = run([*pip, "--upgrade", "--target", str(site), *found], 90, log, os.environ)
        if outcome.code != 0:
            log.write(f"the wheels in {wheels} were not installed (exit code {outcome.code})\n")
    given = os.environ.get("PYTHONPATH")
    paths = [str(site), str(ROOT / "python"), str(ROOT), *([given] if given else [])]
    fixed = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    return dict(os.environ) | fixed


def with_stubs(environment: dict[str, str], site: Path) -> dict[str, str]:
    """Writes stand-ins for the packages that are missing and returns an environment that has them last on the path."""
    folder = site / "stubs"
    for name in _STUBBED:
        if importlib.util.find_spec(name) is None and not (site / name).exists():
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "__init__.py").write_text(_STUB)
    return environment | {"PYTHONPATH": os.pathsep.join([environment["PYTHONPATH"], str(folder)])}


def start_build(capability: str, environment: dict[str, str], log: IO[str]) -> Running:
    """Starts the build of the CUDA extension for one architecture, in place."""
    options = {"SAD_BUILD_CPU": "0", "SAD_BUILD_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability}
    command = [sys.executable, str(ROOT / "setup.py"), "-q", "build_ext", "--inplace"]
    return Running(command, log, environment | options)
