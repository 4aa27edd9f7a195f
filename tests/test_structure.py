"""Who may import whom, and what `import sad` costs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A subpackage of `sad` imports only those with a smaller number. `demo`, `study` and `cli` combine training with agents.
WINGS = {
    "scratch": 1,
    "trajectories": 1,
    "teacher_cache": 2,
    "planner": 2,
    "envs": 2,
    "training": 3,
    "agents": 3,
    "on_policy": 4,
    "report": 4,
    "integrations": 4,
    "study": 5,
    "demo": 6,
    "cli": 7,
}
BACKENDS = {"reference", "triton", "native"}


def imports_of(path: Path, top_level_only: bool = False) -> set[str]:
    """Absolute names of the modules that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("path", files("sadkernels"), ids=lambda p: str(p.relative_to(ROOT)))
def test_kernels_know_nothing_of_the_pipeline(path):
    imported = imports_of(path)
    assert not {name for name in imported if name.split(".")[0] in ("sad", "transformers", "datasets", "tokenizers")}
    own = path.relative_to(ROOT / "sadkernels").parts[0]
    others = {name.split(".")[1] for name in imported if name.startswith("sadkernels.")}
    if own in BACKENDS:
        assert not others & ((BACKENDS | {"ops"}) - {own}), "backends know neither each other nor the ops"
    if path.parent.parent.name == "native":  # native/cpu and native/cuda
        other = {"cpu": "cuda", "cuda": "cpu"}[path.parent.name]
        assert not {name for name in imported if name.startswith(f"sadkernels.native.{other}")}


@pytest.mark.parametrize("path", files("python/sad"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_wing_knows_only_those_above_it(path):
    parts = path.relative_to(ROOT / "python" / "sad").parts
    wing = parts[0] if len(parts) > 1 else None
    for name in imports_of(path):
        words = name.split(".")
        if words[0] != "sad" or len(words) < 2 or words[1] not in WINGS:
            continue
        if wing is None:
            assert path.name == "__init__.py", f"{path} is above the wings and imports {name}"
        else:
            assert words[1] == wing or WINGS[words[1]] < WINGS[wing], f"{path} imports {name}"


def test_no_import_cycle():
    """Imports inside functions and for types count too."""
    modules = {}
    for folder, root in (("sadkernels", ROOT), ("python/sad", ROOT / "python")):
        for path in files(folder):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            modules[name.removesuffix(".__init__")] = path
    graph = {name: {x for x in imports_of(path) if x in modules and x != name} for name, path in modules.items()}
    for module in graph:  # importing a submodule runs its packages, unless they are the importer's own
        graph[module] = {x for x in graph[module] if not module.startswith(f"{x}.")}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_extensions_include_no_pytorch_and_backends_nothing_of_each_other():
    for path in [x for x in sorted((ROOT / "csrc").rglob("*")) if x.suffix in (".h", ".cuh", ".cpp", ".cu")]:
        included = re.findall(r'#include ["<](.+)[">]', path.read_text())
        assert not [name for name in included if name.startswith(("torch/", "ATen/", "c10/"))], path
        folder = path.relative_to(ROOT / "csrc").parts[0]
        for name in (x for x in included if not x.startswith("pybind11/")):
            elsewhere = [x for x in (ROOT / "csrc").glob(f"*/{name}") if x.parent.name != folder]
            assert not elsewhere or (path.parent / name).is_file(), f"{path} includes {name} of another backend"


def test_import_sad_is_light():
    """The loss works without the libraries of the trainer and the command line being imported."""
    code = (
        "import sys, sad, torch\n"
        "sad.fused_span_kl(torch.randn(2, 3), torch.randn(2, 3), torch.tensor([1, 2]))\n"
        "heavy = {'transformers', 'datasets', 'tokenizers', 'accelerate', 'matplotlib', 'typer', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_exists():
    import sad

    for name in sad.__all__:
        assert getattr(sad, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sad.nonsense
