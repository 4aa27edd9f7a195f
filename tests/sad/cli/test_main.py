"""The `sad` command as a whole: its version, its help, and messages of libraries that it drops."""

from __future__ import annotations

import importlib.util
import logging
from itertools import pairwise

import pytest
from typer.testing import CliRunner

import sad
from sad import quiet
from sad.cli.flags import one_line_paragraphs
from sad.cli.main import COMMANDS, app
from tests.processes import run_python


def test_version():
    assert CliRunner().invoke(app, ["--version"]).output == f"sad {sad.__version__}\n"


@pytest.mark.parametrize("command", [name for name in COMMANDS if " " not in name])
def test_help_fills_its_lines(command, monkeypatch):
    """A line of a paragraph ends where the next word would not fit."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = CliRunner().invoke(app, [command, "--help"]).output.splitlines()
    text = [line.strip() for line in lines[: next(n for n, line in enumerate(lines) if line.startswith("╭"))]]
    text = text[next(n for n, line in enumerate(text) if line.startswith("Usage")) + 1 :]
    for line, following in pairwise(text):
        assert not line or not following or len(f"{line} {following.split()[0]}") > 76, line


def test_paragraphs_of_a_docstring():
    assert one_line_paragraphs("""One\n    two.\n\n    Three\n    four.\n    """) == "One two.\n\nThree four."


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_a_command_does_not_begin_with_the_message_of_a_library(tmp_path):
    """bitsandbytes prints it at import on some processors. This process prints it on all, and one that stays."""
    code = (
        "import logging\nfrom sad.cli import main\n"
        "def app():\n"
        "    import bitsandbytes\n"
        "    logger = logging.getLogger('bitsandbytes.backends.cpu.ops')\n"
        "    logger.warning('Failed to load CPU gemm_4bit_forward from kernels-community: %s.', 'no kernels')\n"
        "    logger.warning('another message')\n"
        "main.app = app\nmain.main()\n"
    )
    done = run_python("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gemm_4bit_forward" not in done.stdout + done.stderr and "another message" in done.stderr


def test_only_known_messages_are_dropped(caplog):
    quiet.drop_irrelevant_messages()
    for name, start in quiet.IRRELEVANT.items():
        logging.getLogger(name).warning(f"{start} and more")
        logging.getLogger(name).warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"] * len(quiet.IRRELEVANT)
