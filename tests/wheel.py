"""Checks an installed wheel without PyTorch: every file of the package is there, and the CPU kernels load.

python tests/wheel.py, with an interpreter in whose environment only the wheel is installed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

NAME = "structured-agent-distillation"
NEEDED = {
    "sad/cli/main.py",
    "sad/py.typed",
    "sad/report/templates/base.html",
    "sadkernels/py.typed",
    "sadkernels/ops/span_kl.py",
}
UNWANTED = ("tests/", "csrc/", "benchmarks/", "docs/", "examples/")

files = {str(path): path for path in importlib.metadata.files(NAME) or ()}
missing = NEEDED - {*files}
assert not missing, f"missing in the wheel: {sorted(missing)}"
assert not [name for name in files if name.startswith(UNWANTED)], "the wheel holds files of the repository"
[library] = [path for name, path in files.items() if name.startswith("sadkernels/native/_cpu.") and not name.endswith(".py")]
spec = importlib.util.spec_from_file_location("_cpu", library.locate())
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sets = list(module.supported_isas())
assert "portable" in sets, sets
print(f"{NAME} {importlib.metadata.version(NAME)}, Python {sys.version.split()[0]}: CPU kernels for {', '.join(sets)}")
