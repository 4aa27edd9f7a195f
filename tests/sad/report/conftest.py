from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from rich.console import Console


@pytest.fixture
def render(monkeypatch) -> Callable[[Iterable[Any], str | None], str]:
    """Returns a function that prints to a terminal of 80 columns and checks that it uses no color (bold is allowed).

    So NO_COLOR changes nothing, and dark and light terminals show the same.
    """
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run(parts: Iterable[Any], colors: str | None) -> str:
        import re

        out = io.StringIO()
        console = Console(file=out, width=80, force_terminal=colors is not None, color_system=colors)
        for part in parts:
            console.print(part)
        codes = {code for found in re.findall(r"\x1b\[([\d;]*)m", out.getvalue()) for code in found.split(";")}
        assert codes <= {"0", "1"} and bool(codes) == (colors is not None)
        return re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())

    return run
