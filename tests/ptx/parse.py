"""Parses PTX text into functions of instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

_ALIGNED = re.compile(r"\.align\s+(\d+)")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_FUNCTION = re.compile(r"\.(?:visible|weak|entry|func|extern\s+\.func)\b")
_LABEL = re.compile(r"([\w$%.]+)\s*:(?!:)")
_LINE = re.compile(r"\.(?:version|target|address_size|file|loc)\b[^\n]*")
_LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)")
_GUARD = re.compile(r"@(!?)([%\w$]+)\s+")
_VARIABLE = re.compile(r"\.(\w+)\s+([\w$%]+)(?:\[(\d*)\])?$")
_REGISTERS = re.compile(r"([%\w$]+)(?:<(\d+)>)?")
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?")
_FUNC = re.compile(r"\.func\s*(?:\(([^)]*)\))?\s*([\w$]+)\s*\(([^)]*)\)")

SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}


class PtxError(ValueError):
    """The text has something that the executor does not support."""


class Variable(NamedTuple):
    """A variable in memory: a parameter, or shared, local or global memory. The size is 0 for dynamic shared memory."""

    space: str
    name: str
    bytes: int
    align: int


class Instruction(NamedTuple):
    """An instruction as written: `@guard opcode operands`. `negated` is True for `@!guard`."""

    guard: str | None
    negated: bool
    opcode: str
    operands: tuple[str, ...]
    place: str  # file:line of the source, or ""

    @property
    def text(self) -> str:
        guard = f"@{'!' * self.negated}{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}".strip()


@dataclass
class Function:
    """A kernel (`entry`) or a device function.

    Attributes:
        registers: The type of every register, such as "pred" or "b32".
        labels: The index of the instruction after each label.
        variables: Local and shared memory, and the parameters of calls.
    """

    name: str
    entry: bool
    parameters: list[Variable]
    results: list[Variable]
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    max_threads: int | None = None


class Module(NamedTuple):
    """The kernels, device functions, and variables of a PTX file. `data` has the initial bytes of global variables."""

    functions: dict[str, Function]
    variables: dict[str, Variable]
    data: dict[str, bytes]


def parse(text: str) -> Module:
    """Parses a PTX file."""
    return _Parser(text).module()


def split_operands(text: str) -> tuple[str, ...]:
    """Splits at the commas that are not inside of braces, brackets or parentheses."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "{[(":
            depth += 1
        elif c in "}])":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:].strip())
    return tuple(part for part in parts if part)


def variable(text: str) -> Variable:
    """Parses a declaration without its initial value, such as `.param .align 8 .b8 args[80]`."""
    align = _ALIGNED.search(text)
    words = _ALIGNED.sub(" ", text).split()
    words = [word for word in words if word not in (".ptr", ".global", ".extern", ".visible", ".weak") or word == words[0]]
    space = next(
        (word[1:] for word in text.split() if word in (".param", ".shared", ".local", ".global", ".const")), "param"
    )
    found = _VARIABLE.search(" ".join(words))
    if found is None or not (size := re.fullmatch(r"[a-z]+(8|16|32|64)", found[1])):
        raise PtxError(f"PTX declaration: expected a scalar or an array, got {text!r}")
    element = SIZES[size[1]]
    count = 1 if found[3] is None else int(found[3] or 0)
    return Variable(space, found[2], element * count, int(align[1]) if align else element)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = _COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), text)
        self.files = {int(i): path.rsplit("/", 1)[-1] for i, path in re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', self.text)}
        self.parsed = Module({}, {}, {})
        self.function: Function | None = None
        self.scopes: list[dict[str, str]] = []  # names of a block -> names that are unique in the function
        self.place = ""
        self.blocks = 0

    def module(self) -> Module:
        position = 0
        while (position := self._blank(position)) < len(self.text):
            position = self._statement(position)
        return self.parsed

    def _blank(self, position: int) -> int:
        while position < len(self.text) and self.text[position] in " \t\r\n;":
            position += 1
        return position

    def _statement(self, position: int) -> int:
        text = self.text
        if text[position] == "{":
            self.scopes.append({})
            self.blocks += 1
            return position + 1
        if text[position] == "}":
            self.scopes.pop()
            if not self.scopes:
                self.function = None
            return position + 1
        if found := _LINE.match(text, position):
            if location := _LOCATION.match(found[0]):
                self.place = f"{self.files.get(int(location[1]), '?')}:{location[2]}"
            return found.end()
        if text.startswith(".section", position):
            return text.index("}", position) + 1
        if (
            self.function is None
            and _FUNCTION.match(text, position)
            and re.match(r"[^;={]*\.(entry|func)\b", text[position:])
        ):
            return self._header(position)
        if (found := _LABEL.match(text, position)) and self.function is not None:
            self.function.labels[self._name(found[1])] = len(self.function.instructions)
            return found.end()
        end = text.index(";", position)
        statement = " ".join(text[position:end].split())
        if statement.startswith("."):
            self._declaration(statement)
        else:
            self._instruction(statement)
        return end + 1

    def _header(self, position: int) -> int:
        depth = 0
        end = position
        while self.text[end] not in "{;" or depth:
            depth += {"(": 1, ")": -1}.get(self.text[end], 0)
            end += 1
        header = " ".join(self.text[position:end].split())
        if self.text[end] == ";":  # a prototype
            return end + 1
        entry = _ENTRY.search(header)
        found = entry or _FUNC.search(header)
        if found is None:
            raise PtxError(f"PTX function: expected .entry or .func, got {header!r}")
        name, parameters, results = (found[1], found[2], "") if entry else (found[2], found[3], found[1])
        declared = [[variable(x) for x in split_operands(part or "")] for part in (parameters, results)]
        self.function = Function(name, entry is not None, *declared)
        threads = re.search(r"\.(?:reqntid|maxntid)\s+([\d, ]+)", header)
        if threads:
            self.function.max_threads = 1
            for size in threads[1].split(","):
                self.function.max_threads *= int(size)
        self.parsed.functions[name] = self.function
        return end

    def _declaration(self, statement: str) -> None:
        if statement.startswith((".pragma", ".alias")):
            return
        if statement.startswith(".reg"):
            kind, names = statement.split(None, 2)[1:]
            for name, count in _REGISTERS.findall(names):
                numbered = [f"{name}{i}" for i in range(int(count))] if count else [name]
                for register in numbered:
                    self.function.registers[self._declare(register)] = kind[1:]
            return
        declared, _, value = statement.partition("=")
        made = variable(declared.strip())
        if self.function is not None:
            made = made._replace(name=self._declare(made.name))
            self.function.variables[made.name] = made
            return
        self.parsed.variables[made.name] = made
        if made.space in ("global", "const"):
            numbers = [int(x, 0) for x in re.findall(r"-?\w+", value)]
            size = made.bytes // len(numbers) if numbers and made.bytes % len(numbers) == 0 else 1
            content = b"".join((x % (1 << 8 * size)).to_bytes(size, "little") for x in numbers)
            self.parsed.data[made.name] = content.ljust(made.bytes, b"\0")

    def _instruction(self, statement: str) -> None:
        if self.function is None:
            raise PtxError(f"PTX statement outside of a function: {statement!r}")
        guard = _GUARD.match(statement)
        opcode, _, operands = statement[guard.end() if guard else 0 :].partition(" ")
        if self.scopes[1:] and any(self.scopes):  # only then are there names to replace
            operands = re.sub(r"%?[\w$]+", lambda word: self._name(word[0]), operands)
        name = self._name(guard[2]) if guard else None
        made = Instruction(name, bool(guard and guard[1]), opcode, split_operands(operands), self.place)
        self.function.instructions.append(made)

    def _declare(self, name: str) -> str:
        """Returns a unique name for a register or variable that the open block declares."""
        if len(self.scopes) == 1:
            return name
        self.scopes[-1][name] = f"{name}.{self.blocks}"
        return self.scopes[-1][name]

    def _name(self, name: str) -> str:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return name
