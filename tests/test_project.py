"""The files around the package agree with it: the citation, the issue templates, the configuration of the wheels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

import sad

ROOT = Path(__file__).resolve().parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text()


def test_the_citation_is_of_this_version_and_of_the_paper(request):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == sad.__version__
    assert citation["title"].startswith(re.search(r'^name = "(.*)"$', PROJECT, re.MULTILINE)[1])
    assert citation["license"] == re.search(r'^license = "(.*)"$', PROJECT, re.MULTILINE)[1]
    article = citation["preferred-citation"]
    assert article["url"] in (ROOT / "README.md").read_text()
    paper = ROOT.parent / "shared/paper/structured_agent_distillation.txt"
    if not paper.is_file():
        pytest.skip("the paper is not beside the repository")
    head = paper.read_text()[:800]
    assert article["title"] in head
    places = [head.index(f"{author['given-names']} {author['family-names']}") for author in article["authors"]]
    assert places == sorted(places)
    names = re.findall(r"[A-Z]\w+ [A-Z]\w+(?=[\d^¹²³⁴⁵⁶⁷])", head)
    assert len(names) == len(article["authors"])


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_issue_templates(path):
    """The keys that GitHub requires of a form."""
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    fields = form["body"]
    assert len({field["id"] for field in fields}) == len(fields)
    for field in fields:
        assert field["type"] == "textarea" and field["attributes"]["label"] and field["validations"] == {"required": True}
    if path.stem == "bug":
        assert any("sad doctor" in field["attributes"]["label"] for field in fields)


def test_the_sdist_holds_what_a_build_needs(tmp_path):
    """Every source of the packages and of the kernels, and nothing of the tests."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("csrc", "python", "sadkernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path / "dist")]
    environment = os.environ | {"SAD_BUILD_CPU": "0", "SAD_BUILD_CUDA": "0"}
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    [archive] = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.partition("/")[2] for name in opened.getnames()}
    packed = [path for name in ("csrc", "python", "sadkernels") for path in (source / name).rglob("*")]
    expected = {str(path.relative_to(source)) for path in packed if path.is_file() and ".egg-info" not in str(path)}
    assert len(expected) > 300 and expected <= held
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"} <= held
    assert not [name for name in held if name.startswith(("tests/", "benchmarks/", "docs/"))]


def test_wheels_are_built_for_every_python_of_the_readme():
    """CPython 3.10 to 3.13, each with the CPU kernels and without the CUDA kernels."""
    low, high = map(int, re.search(r"Python 3\.(\d+) to 3\.(\d+)", (ROOT / "README.md").read_text()).groups())
    [wheels] = re.findall(
        r"^\[tool\.cibuildwheel\].*?\n(.*?)(?=^\[(?!tool\.cibuildwheel))", PROJECT, re.MULTILINE | re.DOTALL
    )
    assert re.findall(r"cp3(\d+)-", wheels) == [str(minor) for minor in range(low, high + 1)]
    assert re.search(r'^requires-python = ">=3\.(\d+)"', PROJECT, re.MULTILINE)[1] == str(low)
    assert 'SAD_BUILD_CPU = "1"' in wheels and 'SAD_BUILD_CUDA = "0"' in wheels
    [script] = re.findall(r"\{project\}/(\S+\.py)", wheels)
    assert (ROOT / script).is_file()
