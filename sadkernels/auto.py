"""What `backend="auto"` tries, in order: one readable table, from what was measured."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Choice(NamedTuple):
    """The order of backends for the tensors that a row describes; None stands for any."""

    device: str
    op: str | None
    dtypes: tuple[torch.dtype, ...] | None  # of the student's tensors
    columns: tuple[int, int] | None  # vocabulary from, up to and without
    architectures: tuple[int, ...] | None  # 90 for compute capability 9.0
    backends: tuple[str, ...]
    because: str  # where the order comes from: a file in benchmarks/results, or "reasoned, not measured"


# The first row that fits decides; `reference` comes after all of them. Narrow rows first.
CHOICES = (
    Choice("cpu", None, None, None, None, ("cpu",), "benchmarks/results/span_kl_cpu.csv"),
    Choice("cuda", None, None, None, None, ("triton", "cuda"), "reasoned, not measured: nothing has run on a GPU yet"),
)


def order(
    op: str,
    device: torch.device,
    dtypes: tuple[torch.dtype, ...] = (),
    columns: int | None = None,
    choices: tuple[Choice, ...] = CHOICES,
) -> tuple[str, ...]:
    """The backends to try for `op`, best first; none for a device that the table does not know.

    Args:
        op: The op's module name, such as `"span_kl"`.
        device: Where the tensors are.
        dtypes: The dtypes of the floating-point tensors, the student's first.
        columns: The vocabulary, where the op has one.
        choices: The table.
    """
    for row in choices:
        if (
            row.device == device.type
            and row.op in (None, op)
            and (row.dtypes is None or (dtypes and dtypes[0] in row.dtypes))
            and (row.columns is None or (columns is not None and row.columns[0] <= columns < row.columns[1]))
            and (row.architectures is None or _architecture(device) in row.architectures)
        ):
            return row.backends
    return ()


def _architecture(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
