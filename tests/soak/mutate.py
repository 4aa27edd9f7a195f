"""Damages the content of files: flipped bits, cut ends, and JSON values that no program writes."""

from __future__ import annotations

import json
import random
from typing import Any

NUMBERS = ("1e999", "-1e999", "NaN", "9" * 400, "9" * 5000, "-1", "0.5", "1e-400", "true", "null", "4294967296", "-0")
STRINGS = (
    "",
    "\x00",
    "\u0000a",
    "\ud800",
    "\x1b]52;c;aGk=\x07",
    "[/bold]",
    "a" * 70_000,
    "\u202etxt",
    "<script>",
    "{{x}}",
    "\r",
)


def flip(data: bytes, rng: random.Random, bits: int = 1) -> bytes:
    """Returns data with some flipped bits."""
    changed = bytearray(data)
    for _ in range(bits if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def random_value(rng: random.Random, depth: int = 3) -> Any:
    """Returns a random JSON value, often one that is hard to handle."""
    kind = rng.randrange(8 if depth else 5)
    if kind < 2:
        return rng.choice(STRINGS)
    if kind < 4:
        return rng.choice((0, -1, 1, 2**63, -(2**70), 0.1, 1e308, float("inf"), float("nan"), True, None))
    if kind == 4:
        return rng.choice(("user", "assistant", "tool", "act", "reason", "Action: go", "<think>a</think>", "search[x]"))
    if kind < 7:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    keys = ("id", "text", "messages", "role", "content", "tool_calls", "function", "name", "arguments", "spans", "0", "")
    return {rng.choice(keys): random_value(rng, depth - 1) for _ in range(rng.randrange(4))}


def change_value(value: Any, rng: random.Random) -> Any:
    """Returns a JSON value in which one inner value is replaced, removed, doubled or nested deeply."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        action = rng.random()
        if action < 0.15:
            return {name: x for name, x in value.items() if name != key}
        if action < 0.25:
            return {**value, rng.choice(STRINGS): value[key]}
        return {**value, key: change_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        action = rng.random()
        if action < 0.15:
            return value[:at] + value[at + 1 :]
        if action < 0.3:
            return value[:at] + [value[at]] * rng.choice((2, 50)) + value[at + 1 :]
        return [*value[:at], change_value(value[at], rng), *value[at + 1 :]]
    if isinstance(value, str) and value and rng.random() < 0.5:
        at = rng.randrange(len(value) + 1)
        return value[:at] + rng.choice(STRINGS) + value[at:]
    return random_value(rng)


def damage(data: bytes, rng: random.Random) -> bytes:
    """Returns the content of a text file with one random damage."""
    action = rng.randrange(9)
    if action == 0:
        return flip(data, rng, rng.choice((1, 1, 8)))
    if action == 1:
        return data[: rng.randrange(len(data) + 1)]
    if action == 2:
        at = rng.randrange(len(data) + 1)
        return data[:at] + rng.choice((b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"{", b'"', b"\r", b"[" * 200_000)) + data[at:]
    if action == 3:  # another number
        digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
        if digits:
            at = rng.choice(digits)
            return data[:at] + rng.choice(NUMBERS).encode() + data[at + 1 :]
    if action == 4:
        depth = rng.choice((50, 2000, 100_000))
        return b'{"text": ' + b"[" * depth + b"]" * depth + b"}\n" + data
    lines = data.splitlines(keepends=True)
    if lines:
        at = rng.randrange(len(lines))
        try:
            changed = change_value(json.loads(lines[at]), rng)
            lines[at] = json.dumps(changed).encode() + b"\n"
        except ValueError:
            lines[at] = lines[at][::-1]
    return b"".join(lines)
