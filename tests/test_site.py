"""The site of the documentation builds without a warning: links, anchors and docstrings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocstrings", reason="the site needs the extra `docs`")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_page_is_in_the_navigation(site: Path) -> None:
    index = (site / "index.html").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert f'href="{path.stem}.html"' in index, f"add {path.name} to nav in mkdocs.yml"


def test_reference_has_every_public_name_and_command(site: Path) -> None:
    import sad
    from sad.cli.main import COMMANDS

    pages = "".join(path.read_text() for path in (site / "reference").glob("*.html"))
    for name in sad.__all__:
        if name not in ("__version__", *sad._MODULES):
            assert f'.{name}"' in pages, f"add the module of {name} to REFERENCE in docs/_hooks.py"
    for name in COMMANDS:
        assert f">sad {name}" in pages
    assert "--lambda-reason" in pages and "--per-device-train-batch-size" not in pages


def test_no_page_loads_anything_from_another_server(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text()
        for tag in ('<script src="http', '<link rel="stylesheet" href="http', '<img src="http'):
            assert tag not in text, f"{path.name}: {tag}"
