"""Counts the instructions that one iteration of a loop executes, by pipe, in the machine code of a kernel.

`nvdisasm -c` lists a kernel as instructions and labels. A loop here is the code between a label and the last branch back to
it that contains no other loop. Code inside a loop may branch: to a slower path for rows that are not aligned, or around work
that some iterations skip. The hot path is the one with the most 16-byte accesses, and of these the shortest.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PIPES = ("fma", "alu", "mufu", "lsu", "other")
# The opcodes of each pipe from sm_80 to sm_120; Nsight Compute's metrics guide and the throughput table of the CUDA
# programming guide name the pipes. "other" has branches, barriers and the uniform datapath: they use issue slots only.
_FMA = ("FADD", "FMUL", "FFMA", "FADD2", "FMUL2", "FFMA2", "FSWZADD", "HADD2", "HMUL2", "HFMA2", "IMAD", "IMUL")
_MUFU = ("MUFU", "POPC", "FLO", "BREV", "I2F", "F2I", "F2F", "FRND", "I2I")
_LSU = ("LDG", "STG", "LDS", "STS", "LDL", "STL", "LDSM", "LD", "ST", "LDGSTS", "SHFL", "ATOM", "ATOMG", "ATOMS", "RED")
_OTHER = ("BRA", "BRX", "JMP", "CALL", "RET", "EXIT", "BSSY", "BSYNC", "BREAK", "NOP", "WARPSYNC", "YIELD", "BAR", "DEPBAR")
_OTHER += (
    "MEMBAR",
    "ERRBAR",
    "CCTL",
    "LDGDEPBAR",
    "LDC",
    "LDCU",
    "S2R",
    "S2UR",
    "CS2R",
    "R2UR",
    "VOTEU",
    "BMOV",
    "NANOSLEEP",
)
_OTHER += ("ENDCOLLECTIVE", "ACQBULK", "ELECT", "PREEXIT", "CCTLL", "CGAERRBAR", "UCGABAR_ARV", "UCGABAR_WAIT", "SYNCS")

_BRANCHES = ("BRA", "BRX", "JMP")
_ARITHMETIC = ("FADD", "FMUL", "FFMA", "FADD2", "FMUL2", "FFMA2")
_PACKED = ("FADD2", "FMUL2", "FFMA2")  # two float32 operations
_TOOL_SECONDS = 120

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*)")
_LABEL = re.compile(r"(\.L_x_\d+):")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")


class Instruction(NamedTuple):
    """One line of machine code."""

    opcode: str
    predicated: bool
    target: str | None  # the label that a branch jumps to

    @property
    def operation(self) -> str:
        """The opcode without its modifiers, such as LDG for LDG.E.128."""
        return self.opcode.partition(".")[0]

    @property
    def is_call(self) -> bool:
        """Whether it calls a function. Some compilers leave a loop by a CALL to a label of the same kernel."""
        return self.operation == "CALL" and self.target is None

    @property
    def access_bits(self) -> int:
        """Bits per thread of a load or store."""
        parts = [part.lstrip("SU") for part in self.opcode.split(".")[1:]]
        return next((int(part) for part in parts if part in ("8", "16", "64", "128", "256")), 32)

    @property
    def pipe(self) -> str:
        """The pipe that executes it, one of `PIPES`."""
        operation = self.operation
        for pipe, operations in (("fma", _FMA), ("mufu", _MUFU), ("lsu", _LSU), ("other", _OTHER)):
            if operation in operations:
                return pipe
        return "other" if operation.startswith("U") and operation != "UNPACK" else "alu"


class Loop(NamedTuple):
    """An innermost loop.

    Args:
        body: All its instructions.
        path: The instructions of the hot path.
    """

    body: list[Instruction]
    path: list[Instruction]

    @property
    def loaded_bytes(self) -> int:
        """The bytes per thread that its 16-byte (or wider) loads read in one iteration."""
        wide = [x.access_bits for x in self.path if x.operation in ("LDG", "LDS") and x.access_bits >= 128]
        return sum(wide) // 8

    @property
    def is_pass(self) -> bool:
        """Whether it is a pass over a row that computes, not one that copies a row or fills it with zeros."""
        return self.loaded_bytes > 0 and any(x.pipe == "mufu" for x in self.path)

    @property
    def writes(self) -> bool:
        """Whether it writes a row."""
        return any(x.operation == "STG" and x.access_bits >= 128 for x in self.path)

    @property
    def has_logarithms(self) -> bool:
        """Whether it computes logarithms."""
        return any(x.opcode.startswith("MUFU.LG2") for x in self.path)

    @property
    def arithmetic(self) -> int:
        """The float32 additions and multiplications of one iteration."""
        return sum(1 + (x.operation in _PACKED) for x in self.path if x.operation in _ARITHMETIC)

    @property
    def pipes(self) -> dict[str, int]:
        """The lanes that a thread needs from each pipe, and the issue slots, in one iteration.

        A 16-byte access occupies four 4-byte lanes of the load/store pipe.
        """
        lanes = dict.fromkeys(PIPES, 0)
        for x in self.path:
            lanes[x.pipe] += max(1, x.access_bits // 32) if x.pipe == "lsu" else 1 + (x.operation in _PACKED)
        return {"issue": len(self.path), **lanes}


def per_column(loops: list[Loop], bytes_per_column: int) -> dict[str, object]:
    """Returns the work per column of the passes over a row, summed over the passes.

    Args:
        loops: The innermost loops of a kernel.
        bytes_per_column: Bytes that a pass reads per column.

    Returns:
        `passes`; issue slots and lanes of each pipe per column; narrow accesses (2 bytes or less) on the hot paths, and
        calls of functions anywhere in the loops.
    """
    passes = _passes(loops)
    total = dict.fromkeys(("issue", *PIPES), 0.0)
    for loop in passes:
        columns = loop.loaded_bytes / bytes_per_column
        for pipe, lanes in loop.pipes.items():
            total[pipe] += lanes / columns
    return {
        "passes": len(passes),
        **{f"{pipe}_per_column": round(lanes, 3) for pipe, lanes in total.items()},
        "narrow_in_passes": sum(x.pipe == "lsu" and x.access_bits <= 16 for loop in passes for x in loop.path),
        "calls_in_passes": sum(x.is_call for loop in passes for x in loop.body),
    }


def _passes(loops: list[Loop]) -> list[Loop]:
    """Returns one loop per pass over a row.

    The compiler may write a pass twice, for example unrolled and not, and a kernel may have a slower pass for unusual rows.
    Such copies have the same special-function operations per column, or all of them compute logarithms, and their other
    arithmetic differs by less than a factor of 2. The one that reads the most per iteration counts, and of these the
    shortest.
    """
    copies: list[list[Loop]] = []
    for loop in (loop for loop in loops if loop.is_pass):
        found = next((others for others in copies if _is_copy(loop, others[0])), None)
        if found is None:
            copies.append([loop])
        else:
            found.append(loop)
    return [min(found, key=lambda loop: (-loop.loaded_bytes, len(loop.path))) for found in copies]


def _is_copy(a: Loop, b: Loop) -> bool:
    if a.writes != b.writes or a.has_logarithms != b.has_logarithms:
        return False
    if not a.has_logarithms and a.pipes["mufu"] * b.loaded_bytes != b.pipes["mufu"] * a.loaded_bytes:
        return False
    few, many = sorted(loop.arithmetic / loop.loaded_bytes for loop in (a, b))
    return many < 2 * few or many == few


def local_bytes(sass: str) -> int:
    """Returns the bytes per thread that the loads and stores of a kernel move from and to local memory."""
    return sum(x.access_bits for x in _parse(sass)[0] if x.operation in ("LDL", "STL")) // 8


def run_tool(name: str, *arguments: str | Path, folder: Path | None = None) -> str:
    """Runs cuobjdump or nvdisasm of the CUDA toolkit, or of Triton, in a folder and returns its output."""
    tool = shutil.which(name)
    if tool is None and (triton := importlib.util.find_spec("triton")):
        tool = str(Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name)
    if tool is None or not Path(tool).is_file():
        raise SystemExit(f"{name} was not found; install the CUDA toolkit or Triton")
    command = [tool, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TOOL_SECONDS, cwd=folder).stdout


def innermost_loops(sass: str) -> list[Loop]:
    """Returns the innermost loops of a kernel in the order of the code."""
    code, labels = _parse(sass)
    spans: dict[int, int] = {}
    for end, x in enumerate(code):
        begin = labels.get(x.target, end + 1) if x.operation in _BRANCHES else end + 1
        if begin <= end and end not in _reached_without(begin, code, labels):
            spans[begin] = end  # the last branch back
    found = []
    for begin, end in sorted(spans.items()):
        if begin < end and not any((b, e) != (begin, end) and begin <= b and e <= end for b, e in spans.items()):
            found.append(Loop(code[begin : end + 1], _hot_path(code, labels, begin, end)))
    return found


def _reached_without(avoided: int, code: list[Instruction], labels: dict[str, int]) -> set[int]:
    """Returns the instructions that the kernel reaches from its first one without the instruction `avoided`.

    A rare block is often at the end of the code and branches back to a label. This is no loop: the kernel reaches the branch
    without the label.
    """
    reached: set[int] = set()
    pending = [0]
    while pending:
        at = pending.pop()
        if at == avoided or at in reached or at >= len(code):
            continue
        reached.add(at)
        x = code[at]
        if x.target in labels:  # a branch, a call, or where threads that diverge here meet again
            pending.append(labels[x.target])
        if x.predicated or x.opcode not in ("BRA", "EXIT", "RET"):
            pending.append(at + 1)
    return reached


def _parse(sass: str) -> tuple[list[Instruction], dict[str, int]]:
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(code)
        elif found := _INSTRUCTION.search(line):
            target = _TARGET.search(found[4])
            code.append(Instruction(found[3], found[2] is not None, target[1] if target else None))
    return code, labels


def _hot_path(code: list[Instruction], labels: dict[str, int], begin: int, end: int) -> list[Instruction]:
    """Returns the path through [begin, end] with the most 16-byte accesses and of these the fewest instructions.

    Branches inside an innermost loop lead forward, so one backward sweep finds the best path from every instruction.
    """
    best: dict[int, tuple[int, int]] = {}  # -16-byte accesses and instructions from here to the branch back
    follow: dict[int, int | None] = {}
    for at in range(end, begin - 1, -1):
        x = code[at]
        options: dict[int | None, tuple[int, int]] = {}
        for successor in _successors(x, at, labels):
            if successor == begin:
                options[None] = (0, 0)  # the next iteration
            elif successor in best:
                options[successor] = best[successor]
        if options:
            follow[at] = min(options, key=options.__getitem__)
            wide, length = options[follow[at]]
            best[at] = (wide - (x.pipe == "lsu" and x.access_bits >= 128), length + 1)
    path, at = [], begin if begin in best else None
    while at is not None:
        path.append(code[at])
        at = follow[at]
    return path


def _successors(x: Instruction, at: int, labels: dict[str, int]) -> Iterator[int]:
    if x.target in labels and x.operation in _BRANCHES:
        yield labels[x.target]
        if not x.predicated:
            return
    if x.operation not in ("EXIT", "RET") or x.predicated:
        yield at + 1
