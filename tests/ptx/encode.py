"""Encodes a kernel as the program that the executor runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tests.ptx.control_flow import joins
from tests.ptx.inline import inline_calls, local_layout, shared_layout
from tests.ptx.instructions import MODES, NO_EFFECT, OPERATION_OF, OPERATIONS, SPECIAL, SPECIAL_ALIASES
from tests.ptx.parse import Function, Instruction, Module, PtxError, Variable, split_operands

SPACES = {"global": 0, "shared": 1, "local": 2, "param": 3, "": 4, "shared::cluster": 5, "shared::cta": 1, "const": 0}
CONSTANT, SPECIAL_REGISTER, SHARED_ADDRESS = range(3)
NO_SLOT = -1
_CACHE_HINTS = re.compile(r"\.(?:L1::\w+|L2::\w+|ca|cg|cs|lu|cv|wb|wt|nc|relaxed|weak|volatile|cta|gpu|sys|uni)(?![\w:])")
_MEMORY = re.compile(
    r"(ld|st)(?:\.(global|shared::cluster|shared::cta|shared|local|param|const))?(?:\.v(\d))?\.([a-z]+)(8|16|32|64)"
)
_ATOMIC = re.compile(r"(atom|red)(?:\.(global|shared::cluster|shared::cta|shared))?\.(\w+)\.([bu])(32|64)")
_MATRIX = re.compile(r"(ld|st)matrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.(shared(?:::cta)?)\.b16")
_FLOAT = re.compile(r"0[fF]([0-9a-fA-F]{8})$")
_DOUBLE = re.compile(r"0[dD]([0-9a-fA-F]{16})$")
_SETP = re.compile(r"(setp\.\w+)\.(and|or|xor)(\.(?:ftz\.)?\w+)")

INSTRUCTION = np.dtype([("op", "<i4"), ("guard", "<i4"), ("negated", "<i4"), ("args", "<i4", 13)])
INITIAL = np.dtype([("slot", "<i4"), ("words", "<i4"), ("kind", "<i4"), ("special", "<i4"), ("value", "<u8")])


@dataclass
class Program:
    """A kernel in the form of executor/program.h.

    Attributes:
        texts: For every encoded instruction, the PTX instruction and its source line.
        parameters: Offset and size of every kernel parameter.
        static_shared: Bytes of shared memory that the kernel declares.
        local: Bytes of local memory per lane.
        globals: Global variables of the module, which the program holds.
    """

    name: str
    instructions: np.ndarray
    initial: np.ndarray
    texts: list[str]
    register_words: int
    parameters: list[Variable]
    offsets: list[int]
    static_shared: int
    local: int
    max_threads: int | None
    globals: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def parameter_bytes(self) -> int:
        return self.offsets[-1] + self.parameters[-1].bytes if self.parameters else 0


def encode(module: Module, kernel: str) -> Program:
    """Encodes a kernel of a module.

    Raises:
        PtxError: The kernel has an instruction that the executor does not support.
    """
    function = module.functions.get(kernel)
    if function is None or not function.entry:
        names = [name for name, found in module.functions.items() if found.entry]
        raise PtxError(f"PTX kernel: expected one of {names}, got {kernel!r}")
    return _Encoder(inline_calls(function, module), module).program()


class _Encoder:
    def __init__(self, function: Function, module: Module) -> None:
        self.function = function
        self.words = 0
        self.slots: dict[str, int] = {}
        self.initial: list[tuple[int, int, int, int, int]] = []
        self.constants: dict[tuple[int, int, int, int], int] = {}
        self.rows: list[tuple[int, int, int, list[int]]] = []
        self.texts: list[str] = []
        self.parameters: dict[str, int] = {}
        offset = 0
        for parameter in function.parameters:
            offset = -(-offset // parameter.align) * parameter.align
            self.parameters[parameter.name] = offset
            offset += parameter.bytes
        self.locals, self.local_bytes = local_layout(function)
        self.shared, self.static_shared = shared_layout(function, module)
        self.globals = {name: np.frombuffer(data + b"\0" * 16, np.uint8).copy() for name, data in module.data.items()}

    def program(self) -> Program:
        branches = joins(self.function)
        starts = []  # of every PTX instruction among the encoded ones
        jumps = []
        for i, instruction in enumerate(self.function.instructions):
            starts.append(len(self.rows))
            if instruction.opcode.split(".")[0] == "bra":
                jumps.append((len(self.rows), instruction.operands[0], branches.get(i)))
            try:
                self.encode(instruction)
            except (KeyError, ValueError, IndexError, TypeError) as error:
                place = f" ({instruction.place})" if instruction.place else ""
                raise PtxError(f"unsupported PTX instruction in {self.function.name}: {instruction.text}{place}") from error
            text = f"{instruction.text}    [{instruction.place}]" if instruction.place else instruction.text
            self.texts += [text] * (len(self.rows) - len(self.texts))
        starts.append(len(self.rows))
        for row, label, join in jumps:
            self.rows[row][3][:] = [starts[self.function.labels[label]], starts[join] if join is not None else NO_SLOT]
        instructions = np.zeros(len(self.rows), INSTRUCTION)
        for target, (op, guard, negated, args) in zip(instructions, self.rows):
            target["op"], target["guard"], target["negated"] = op, guard, negated
            target["args"][: len(args)] = args
        return Program(
            self.function.name,
            instructions,
            np.array(self.initial, INITIAL),
            self.texts,
            self.words,
            self.function.parameters,
            list(self.parameters.values()),
            self.static_shared,
            self.local_bytes,
            self.function.max_threads,
            self.globals,
        )

    # --- registers

    def slot(self, name: str) -> int:
        """Returns the slot of a register."""
        if name == "_":
            return NO_SLOT
        if name not in self.slots:
            kind = self.function.registers[name]
            self.slots[name] = self.new_slot({"pred": 1}.get(kind, 64 if kind.endswith("64") else 32))
        return self.slots[name]

    def new_slot(self, words: int) -> int:
        self.words += words
        return self.words - words

    def bits(self, name: str) -> int:
        """Returns the bits of a lane's register as the executor stores it: 1, 32 or 64."""
        kind = self.function.registers.get(name)
        return 32 if kind is None else 1 if kind == "pred" else 64 if kind.endswith("64") else 32

    def constant(self, value: int, words: int = 32, kind: int = CONSTANT, special: int = 0) -> int:
        """Returns the slot of a register that holds a constant."""
        key = (value % (1 << 64), words, kind, special)
        if key not in self.constants:
            self.constants[key] = self.new_slot(words)
            self.initial.append((self.constants[key], words, kind, special, key[0]))
        return self.constants[key]

    def operand(self, text: str, type_: str) -> int:
        """Returns the slot of a register or constant operand of an instruction that reads this type."""
        words = 1 if type_ == "pred" else 64 if type_.endswith("64") else 32
        if text in self.function.registers:
            if self.bits(text) != {1: 1}.get(words, words):
                raise ValueError("the register has another size than the type")
            return self.slot(text)
        if text.startswith("%"):
            name = text[1:].replace(".", "_")
            return self.constant(0, words, SPECIAL_REGISTER, SPECIAL.index(SPECIAL_ALIASES.get(name, name)))
        if (kind_and_value := self.symbol(text)) is not None:
            return self.constant(kind_and_value[1], words, kind_and_value[0])
        return self.constant(_number(text, type_), words)

    def symbol(self, name: str) -> tuple[int, int] | None:
        """Returns the address of a variable in its own space, and the kind of the constant that holds it."""
        if name in self.shared:
            return SHARED_ADDRESS, self.shared[name]
        for offsets in (self.locals, self.parameters):
            if name in offsets:
                return CONSTANT, offsets[name]
        return (CONSTANT, self.globals[name].ctypes.data) if name in self.globals else None

    def address(self, text: str) -> list[int]:
        """Returns slot, bits and offset of an address such as `[%rd1+8]`."""
        inside = text.removeprefix("[").removesuffix("]").replace(" ", "")
        base, sign, offset = re.fullmatch(r"([^+]+?)(?:(\+)(-?\w+)|(?=-\d)(-\d+))?", inside).group(1, 2, 3)
        number = int(offset, 0) if sign else 0
        if base in self.function.registers:
            return [self.slot(base), self.bits(base), number]
        if base in self.shared:
            return [self.operand(base, "u32"), 32, number]
        return [self.operand(base, "u64"), 64, number]

    # --- instructions

    def encode(self, instruction: Instruction) -> None:
        opcode = instruction.opcode
        name = opcode.split(".")[0]
        special: dict[str, Callable[[Instruction], None]] = {
            "bra": lambda _: self.emit(instruction, "bra", [0, 0]),
            "ret": lambda _: self.emit(instruction, "exit", []),
            "exit": lambda _: self.emit(instruction, "exit", []),
            "trap": lambda _: self.emit(instruction, "trap", []),
            "ld": self.memory,
            "st": self.memory,
            "atom": self.atomic,
            "red": self.atomic,
            "cp": self.copy,
            "bar": self.barrier,
            "barrier": self.barrier,
            "ldmatrix": self.matrix,
            "stmatrix": self.matrix,
            "shfl": self.shuffle,
            "vote": self.vote,
            "redux": self.redux,
        }
        if opcode in NO_EFFECT:
            self.emit(instruction, "nop", [])
        elif name in special:
            special[name](instruction)
        elif name == "mov" and any(x.startswith("{") for x in instruction.operands):
            self.pack_or_unpack(instruction)
        elif found := _SETP.fullmatch(opcode):
            self.compare_and_combine(instruction, found)
        else:
            self.arithmetic(instruction)

    def emit(self, instruction: Instruction, operation: str | int, args: list[int]) -> None:
        number = OPERATIONS.index(operation) if isinstance(operation, str) else operation
        guard = self.slot(instruction.guard) if instruction.guard else NO_SLOT
        self.rows.append((number, guard, int(instruction.negated), args))

    def arithmetic(self, instruction: Instruction) -> None:
        operation = OPERATION_OF[instruction.opcode]
        if len(operation.types) > len(instruction.operands):
            raise ValueError("an operand is missing")
        self.emit(instruction, operation.number, [self.operand(x, t) for x, t in zip(instruction.operands, operation.types)])

    def compare_and_combine(self, instruction: Instruction, found: re.Match) -> None:
        """`setp.lt.and.s32 p, a, b, c` is `setp.lt.s32 t, a, b` and `and.pred p, t, c`."""
        result, a, b, c = instruction.operands
        compared = self.new_slot(1)
        operation = OPERATION_OF[found[1] + found[3]]
        operands = [self.operand(x, t) for x, t in zip((a, b), operation.types[1:])]
        self.emit(instruction, operation.number, [compared, *operands])
        other = c.removeprefix("!")
        if other != c:
            inverted = self.new_slot(1)
            self.emit(instruction, OPERATION_OF["not.pred"].number, [inverted, self.operand(other, "pred")])
        combined = OPERATION_OF[f"{found[2]}.pred"].number
        third = inverted if other != c else self.operand(c, "pred")
        self.emit(instruction, combined, [self.slot(result), compared, third])

    def pack_or_unpack(self, instruction: Instruction) -> None:
        bits = int(re.fullmatch(r"mov\.[bu](\d+)", instruction.opcode)[1])
        to, source = instruction.operands
        whole, parts = (source, to) if to.startswith("{") else (to, source)
        elements = split_operands(parts.strip("{} "))
        part = bits // len(elements)
        if to.startswith("{"):
            slots = [self.slot(x) for x in elements]
            self.emit(instruction, "unpack", [self.operand(whole, f"b{bits}"), bits, part, len(slots), *slots])
        else:
            slots = [self.operand(x, f"b{part}") for x in elements]
            self.emit(instruction, "pack", [self.slot(whole), bits, part, len(slots), *slots])

    def memory(self, instruction: Instruction) -> None:
        kind, space, count, sign, size = _MEMORY.fullmatch(_CACHE_HINTS.sub("", instruction.opcode)).groups()
        hinted = "L2::cache_hint" in instruction.opcode
        operands = instruction.operands[:-1] if hinted else instruction.operands
        value, address = operands if kind == "ld" else operands[::-1]
        elements = split_operands(value.strip("{} ")) if value.startswith("{") else (value,)
        if len(elements) != int(count or 1):
            raise ValueError("another number of registers than elements")
        registers = {self.bits(x) for x in elements if x in self.function.registers} or {64 if size == "64" else 32}
        (register,) = registers
        slots = [
            self.slot(x) if x in self.function.registers or x == "_" else self.operand(x, f"b{max(register, int(size))}")
            for x in elements
        ]
        if space == "param" and self.base(address) in self.locals:
            space = "local"  # a parameter of an inlined call
        args = [*slots, *[NO_SLOT] * (4 - len(slots)), *self.address(address)]
        args += [SPACES[space or ""], int(size) // 8, len(elements), register, int(sign == "s")]
        self.emit(instruction, kind, args)

    def base(self, address: str) -> str:
        return re.split(r"[+\]]", address.removeprefix("["))[0].strip()

    def atomic(self, instruction: Instruction) -> None:
        kind, space, mode, _, size = _ATOMIC.fullmatch(_CACHE_HINTS.sub("", instruction.opcode)).groups()
        result = [self.slot(instruction.operands[0])] if kind == "atom" else [NO_SLOT]
        address, *values = instruction.operands[1:] if kind == "atom" else instruction.operands
        slots = [*result, *(self.operand(x, f"b{size}") for x in values)]
        args = [*slots, *[NO_SLOT] * (4 - len(slots)), *self.address(address)]
        args += [SPACES[space or ""], int(size) // 8, 1, int(size), 0, MODES["ATOM"].index(mode)]
        self.emit(instruction, "atom", args)

    def copy(self, instruction: Instruction) -> None:
        words = instruction.opcode.split(".")
        if words[1:] == ["async", "commit_group"]:
            self.emit(instruction, "cp_async_commit_group", [])
        elif words[1:] == ["async", "wait_all"]:
            self.emit(instruction, "cp_async_wait_all", [])
        elif words[1:] == ["async", "wait_group"]:
            self.emit(instruction, "cp_async_wait_group", [self.operand(instruction.operands[0], "u32")])
        elif words[1] == "async" and words[-2:] == ["shared", "global"]:
            to, source, size = instruction.operands
            self.emit(instruction, "cp_async", [*self.address(to), *self.address(source), int(size, 0)])
        else:
            raise ValueError("another copy")

    def barrier(self, instruction: Instruction) -> None:
        opcode = instruction.opcode.removesuffix(".aligned")
        if opcode in ("bar.sync", "barrier.sync", "barrier.cta.sync"):
            if instruction.operands != ("0",):
                raise ValueError("a named barrier")
            self.emit(instruction, "bar_sync", [])
        elif opcode == "bar.warp.sync":
            self.emit(instruction, "bar_warp_sync", [self.operand(instruction.operands[0], "b32")])
        elif opcode in ("barrier.cluster.arrive", "barrier.cluster.arrive.release"):
            self.emit(instruction, "barrier_cluster_arrive", [])
        elif opcode in ("barrier.cluster.wait", "barrier.cluster.wait.acquire"):
            self.emit(instruction, "barrier_cluster_wait", [])
        else:
            raise ValueError("another barrier")

    def matrix(self, instruction: Instruction) -> None:
        kind, count, transposed, space = _MATRIX.fullmatch(instruction.opcode).groups()
        registers, address = instruction.operands if kind == "ld" else instruction.operands[::-1]
        slots = [self.operand(x, "b32") for x in split_operands(registers.strip("{} "))]
        if len(slots) != int(count):
            raise ValueError("another number of registers than matrices")
        args = [*slots, *[NO_SLOT] * (4 - len(slots)), *self.address(address), SPACES[space]]
        self.emit(instruction, "matrix", [*args, len(slots), int(transposed is not None), int(kind == "st")])

    def shuffle(self, instruction: Instruction) -> None:
        mode = re.fullmatch(r"shfl\.sync\.(\w+)\.b32", instruction.opcode)[1]
        result, _, inside = instruction.operands[0].partition("|")
        values = [self.operand(x, "b32") for x in instruction.operands[1:]]
        args = [self.slot(result), self.slot(inside) if inside else NO_SLOT, *values, MODES["SHFL"].index(mode)]
        self.emit(instruction, "shfl", args)

    def vote(self, instruction: Instruction) -> None:
        mode = re.fullmatch(r"vote\.sync\.(\w+)\.(?:pred|b32)", instruction.opcode)[1]
        result, voted, members = instruction.operands
        name = voted.removeprefix("!")
        args = [self.slot(result), self.operand(name, "pred"), int(name != voted), self.operand(members, "b32")]
        self.emit(instruction, "vote", [*args, MODES["VOTE"].index(mode)])

    def redux(self, instruction: Instruction) -> None:
        mode, kind = re.fullmatch(r"redux\.sync\.(\w+)\.(\w+)", instruction.opcode).groups()
        mode = f"{mode}_{kind}" if mode in ("min", "max") else mode
        result, value, members = instruction.operands
        args = [self.slot(result), self.operand(value, "b32"), self.operand(members, "b32"), MODES["REDUX"].index(mode)]
        self.emit(instruction, "redux", args)


def _number(text: str, type_: str) -> int:
    """Returns the bits of a number such as 12, -1, 0x1F, 0U, 0f3F800000 or 1.0."""
    if found := _FLOAT.match(text) or _DOUBLE.match(text):
        return int(found[1], 16)
    if "." in text and type_ in ("f32", "f64"):
        kind = np.float32 if type_ == "f32" else np.float64
        return int(np.array(float(text), kind).view(np.uint32 if type_ == "f32" else np.uint64))
    if type_ in ("f32", "f64", "f16", "bf16"):
        raise ValueError("no number of this type")
    return int(text.removesuffix("U"), 0)
