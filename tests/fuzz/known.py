"""Faults that are known and not fixed yet. Each entry says what it leaves out and why; delete it together with the fault.

There are none at present.
"""

from __future__ import annotations

from tests.fuzz.cases import Case


def excluded(case: Case, backend: str) -> str | None:
    """The fault that this case meets on this backend, or None. The tensors are not needed."""
    return None
