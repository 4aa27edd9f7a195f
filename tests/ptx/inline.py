"""Replaces the calls of device functions by their instructions."""

from __future__ import annotations

import re

from tests.ptx.parse import Function, Instruction, Module, PtxError, Variable

_WORD = re.compile(r"%?[\w$.]+")


def inline_calls(kernel: Function, module: Module) -> Function:
    """Returns a kernel without calls. Their parameters become local memory of the kernel."""
    inlined = Function(kernel.name, True, kernel.parameters, [], max_threads=kernel.max_threads)
    _append(inlined, kernel, module, {}, (), 0)
    return inlined


def _append(
    into: Function, function: Function, module: Module, names: dict[str, str], callers: tuple[str, ...], calls: int
) -> int:
    """Appends the instructions of a function under new names. Returns the number of calls so far."""
    if function.name in callers:
        raise PtxError(f"PTX call: expected no recursion, {function.name} calls itself")
    names = names | {x: _renamed(x, calls) for x in [*function.registers, *function.variables, *function.labels]}
    into.registers |= {names[x]: kind for x, kind in function.registers.items()}
    into.variables |= {names[x]: made._replace(name=names[x]) for x, made in function.variables.items()}
    labels: dict[int, list[str]] = {}
    for label, index in function.labels.items():
        labels.setdefault(index, []).append(names[label])
    end, number = _renamed("$end", calls), calls
    for i, instruction in enumerate(function.instructions):
        into.labels |= {label: len(into.instructions) for label in labels.get(i, ())}
        if instruction.opcode.startswith("call"):
            number = _append_call(into, instruction, module, names, (*callers, function.name), number)
        elif callers and instruction.opcode.startswith("ret"):
            guard = names.get(instruction.guard or "", instruction.guard)
            into.instructions.append(Instruction(guard, instruction.negated, "bra", (end,), instruction.place))
        else:
            operands = tuple(_rename(x, names) for x in instruction.operands)
            guard = names.get(instruction.guard or "", instruction.guard)
            into.instructions.append(instruction._replace(guard=guard, operands=operands))
    last = labels.get(len(function.instructions), ())
    into.labels |= {label: len(into.instructions) for label in (*last, end)}
    return number


def _append_call(
    into: Function, call: Instruction, module: Module, names: dict[str, str], callers: tuple[str, ...], calls: int
) -> int:
    groups = list(call.operands)
    results = _list(groups.pop(0)) if groups and groups[0].startswith("(") else []
    target, arguments = groups[0], _list(groups[1]) if len(groups) > 1 else []
    callee = module.functions.get(target)
    if callee is None or call.guard:
        raise PtxError(f"PTX call: expected a device function of the file without a guard, got {call.text!r}")
    passed = {}
    for formal, actual in zip((*callee.parameters, *callee.results), (*arguments, *results), strict=True):
        passed[formal.name] = names.get(actual, actual)
    return _append(into, callee, module, passed, callers, calls + 1)


def _list(text: str) -> list[str]:
    return [x.strip() for x in text.strip("()").split(",") if x.strip()]


def _renamed(name: str, calls: int) -> str:
    return name if calls == 0 else f"{name}.call{calls}"


def _rename(operand: str, names: dict[str, str]) -> str:
    return _WORD.sub(lambda word: names.get(word[0], word[0]), operand)


def local_layout(function: Function) -> tuple[dict[str, int], int]:
    """Returns the offset of every local variable, and the bytes of local memory per lane."""
    return _layout([x for x in function.variables.values() if x.space in ("local", "param")])


def shared_layout(function: Function, module: Module) -> tuple[dict[str, int], int]:
    """Returns the offset of every variable in shared memory, and the bytes before the dynamic shared memory."""
    used = {word for x in function.instructions for operand in x.operands for word in _WORD.findall(operand)}
    shared = [
        x for x in (*module.variables.values(), *function.variables.values()) if x.space == "shared" and x.name in used
    ]
    offsets, size = _layout([x for x in shared if x.bytes])
    size = -(-size // 16) * 16
    return offsets | {x.name: size for x in shared if not x.bytes}, size


def _layout(variables: list[Variable]) -> tuple[dict[str, int], int]:
    offsets, size = {}, 0
    for made in variables:
        size = -(-size // made.align) * made.align
        offsets[made.name] = size
        size += made.bytes
    return offsets, size
