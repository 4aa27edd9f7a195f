"""Finds where the lanes of a warp meet again after a branch: at the immediate post-dominator of the branch."""

from __future__ import annotations

from tests.ptx.parse import Function, Instruction


def is_branch(instruction: Instruction) -> bool:
    return instruction.opcode.split(".")[0] == "bra"


def ends_lanes(instruction: Instruction) -> bool:
    return instruction.opcode.split(".")[0] in ("ret", "exit")


def joins(function: Function) -> dict[int, int]:
    """Returns, for the index of every guarded branch, the index of the instruction where its lanes meet again.

    The index after the last instruction means that they meet nowhere before the end of the kernel. A path that ends in a
    trap does not count.
    """
    starts = _block_starts(function)
    block_of = {start: i for i, start in enumerate(starts)}
    ends = [*starts[1:], len(function.instructions)]
    last = len(starts)  # the end of the kernel, as a block
    successors = [_successors(function, end - 1, block_of, last) for end in ends]
    immediate = _immediate_post_dominators(successors, last)
    found = {}
    for block, end in enumerate(ends):
        instruction = function.instructions[end - 1]
        if is_branch(instruction) and instruction.guard:
            join = immediate[block]
            found[end - 1] = len(function.instructions) if join is None or join == last else starts[join]
    return found


def _block_starts(function: Function) -> list[int]:
    starts = {0, *function.labels.values()}
    for i, instruction in enumerate(function.instructions):
        if is_branch(instruction) or ends_lanes(instruction) or instruction.opcode == "trap":
            starts.add(i + 1)
    return sorted(start for start in starts if start < len(function.instructions))


def _successors(function: Function, index: int, block_of: dict[int, int], last: int) -> list[int]:
    instruction = function.instructions[index]
    after = block_of.get(index + 1, last)
    if is_branch(instruction):
        target = block_of.get(function.labels[instruction.operands[0]], last)
        return [target, after] if instruction.guard else [target]
    if ends_lanes(instruction):  # lanes that end under a guard meet no other lane again
        return [after] if instruction.guard else [last]
    if instruction.opcode == "trap":
        return [after] if instruction.guard else []
    return [after]


def _immediate_post_dominators(successors: list[list[int]], last: int) -> list[int | None]:
    """Cooper, Harvey, Kennedy: A Simple, Fast Dominance Algorithm, on the reversed graph."""
    predecessors: list[list[int]] = [[] for _ in range(last + 1)]
    for block, following in enumerate(successors):
        for target in following:
            predecessors[target].append(block)
    order, number = [], [-1] * (last + 1)  # post-order of the reversed graph, from the end of the kernel
    seen, stack = {last}, [(last, iter(predecessors[last]))]
    while stack:
        block, rest = stack[-1]
        following = next((x for x in rest if x not in seen), None)
        if following is None:
            stack.pop()
            number[block] = len(order)
            order.append(block)
        else:
            seen.add(following)
            stack.append((following, iter(predecessors[following])))
    immediate: list[int | None] = [None] * (last + 1)
    immediate[last] = last
    changed = True
    while changed:
        changed = False
        for block in reversed(order[:-1]):
            new = None
            for target in successors[block]:
                if immediate[target] is None:
                    continue
                new = target if new is None else _common(new, target, immediate, number)
            if new != immediate[block]:
                immediate[block], changed = new, True
    return immediate


def _common(a: int, b: int, immediate: list[int | None], number: list[int]) -> int:
    while a != b:
        while number[a] < number[b]:
            a = immediate[a]
        while number[b] < number[a]:
            b = immediate[b]
    return a
