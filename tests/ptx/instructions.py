"""The table of supported instructions.

`ARITHMETIC` has the instructions that compute a register from registers. A row is

    mnemonic         "T" stands for each of the types, and "[.x]" for an optional modifier
    types            the values of T
    signature        the type of the result, then the types of the operands
    expression       C++ code of the operands a, b, c and d, for one lane

`.ftz` flushes subnormal operands and results of float32 to zero. `noise` returns approximations, see executor/numbers.h.
The other instructions access memory, or lanes of other threads. `encode` reads their modifiers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

INTEGERS = "u16 s16 u32 s32 u64 s64"
BITS = "b16 b32 b64"
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}

ARITHMETIC = (
    # integers
    ("add.T", INTEGERS, "T T T", "a + b"),
    ("sub.T", INTEGERS, "T T T", "a - b"),
    ("mul.lo.T", INTEGERS, "T T T", "a * b"),
    ("mul.hi.u32", "", "u32 u32 u32", "std::uint64_t{a} * b >> 32"),
    ("mul.hi.s32", "", "s32 s32 s32", "std::int64_t{a} * b >> 32"),
    ("mul.hi.u64", "", "u64 u64 u64", "static_cast<std::uint64_t>(static_cast<unsigned __int128>(a) * b >> 64)"),
    ("mul.wide.T", "u16 s16 u32 s32", "W T T", "W{a} * W{b}"),
    ("mad.lo.T", INTEGERS, "T T T T", "a * b + c"),
    ("mad.wide.T", "u16 s16 u32 s32", "W T T W", "W{a} * W{b} + c"),
    ("div.T", INTEGERS, "T T T", "divided(a, b)"),
    ("rem.T", INTEGERS, "T T T", "remainder_of(a, b)"),
    ("min.T", INTEGERS, "T T T", "std::min(a, b)"),
    ("max.T", INTEGERS, "T T T", "std::max(a, b)"),
    ("neg.T", "s16 s32 s64", "T T", "0 - a"),
    ("abs.T", "s16 s32 s64", "T T", "a < 0 ? 0 - a : a"),
    # bits
    ("and.T", BITS, "T T T", "a & b"),
    ("or.T", BITS, "T T T", "a | b"),
    ("xor.T", BITS, "T T T", "a ^ b"),
    ("not.T", BITS, "T T", "~a"),
    ("and.pred", "", "pred pred pred", "a && b"),
    ("or.pred", "", "pred pred pred", "a || b"),
    ("xor.pred", "", "pred pred pred", "a != b"),
    ("not.pred", "", "pred pred", "!a"),
    ("shl.T", BITS, "T T u32", "shifted_left(a, b)"),
    ("shr.T", f"{BITS} {INTEGERS}", "T T u32", "shifted_right(a, b)"),
    ("shf.l.wrap.b32", "", "b32 b32 b32 u32", "(std::uint64_t{b} << 32 | a) << (c & 31) >> 32"),
    ("shf.r.wrap.b32", "", "b32 b32 b32 u32", "(std::uint64_t{b} << 32 | a) >> (c & 31)"),
    ("bfe.u32", "", "u32 u32 u32 u32", "shifted_right(a, b & 255) & (shifted_left(1u, c & 255) - 1)"),
    ("bfe.s32", "", "s32 s32 u32 u32", "bits_of_signed(a, b & 255, c & 255)"),
    ("prmt.b32", "", "b32 b32 b32 b32", "permuted(a, b, c)"),
    ("lop3.b32", "", "b32 b32 b32 b32 b32", "logic_of_three(a, b, c, d)"),
    ("popc.T", "b32 b64", "u32 T", "std::popcount(a)"),
    ("clz.T", "b32 b64", "u32 T", "std::countl_zero(a)"),
    # moves and comparisons
    ("mov.T", f"{BITS} {INTEGERS} f32 f64 pred", "T T", "a"),
    ("selp.T", f"{BITS} {INTEGERS} f32 f64", "T T T pred", "c ? a : b"),
    ("setp.eq.T", f"{BITS} {INTEGERS} f16 bf16 f32 f64", "pred T T", "a == b"),
    ("setp.ne.T", f"{BITS} {INTEGERS}", "pred T T", "a != b"),
    ("setp.ne.T", "f16 bf16 f32 f64", "pred T T", "a < b || a > b"),
    ("setp.lt.T", f"{INTEGERS} f16 bf16 f32 f64", "pred T T", "a < b"),
    ("setp.le.T", f"{INTEGERS} f16 bf16 f32 f64", "pred T T", "a <= b"),
    ("setp.gt.T", f"{INTEGERS} f16 bf16 f32 f64", "pred T T", "a > b"),
    ("setp.ge.T", f"{INTEGERS} f16 bf16 f32 f64", "pred T T", "a >= b"),
    ("setp.lo.T", "u16 u32 u64", "pred T T", "a < b"),
    ("setp.ls.T", "u16 u32 u64", "pred T T", "a <= b"),
    ("setp.hi.T", "u16 u32 u64", "pred T T", "a > b"),
    ("setp.hs.T", "u16 u32 u64", "pred T T", "a >= b"),
    ("setp.equ.T", "f16 bf16 f32 f64", "pred T T", "!(a < b || a > b)"),
    ("setp.neu.T", "f16 bf16 f32 f64", "pred T T", "!(a == b)"),
    ("setp.ltu.T", "f16 bf16 f32 f64", "pred T T", "!(a >= b)"),
    ("setp.leu.T", "f16 bf16 f32 f64", "pred T T", "!(a > b)"),
    ("setp.gtu.T", "f16 bf16 f32 f64", "pred T T", "!(a <= b)"),
    ("setp.geu.T", "f16 bf16 f32 f64", "pred T T", "!(a < b)"),
    ("setp.num.T", "f16 bf16 f32 f64", "pred T T", "a == a && b == b"),
    ("setp.nan.T", "f16 bf16 f32 f64", "pred T T", "a != a || b != b"),
    # conversions of addresses, see executor/program.h
    ("cvta.T", "global.u64 const.u64", "u64 u64", "a"),
    ("cvta.to.T", "global.u64 const.u64", "u64 u64", "a"),
    ("cvta.shared.u64", "", "u64 u64", "a | window(shared_space)"),
    ("cvta.local.u64", "", "u64 u64", "a | window(local_space)"),
    ("cvta.param.u64", "", "u64 u64", "a | window(param_space)"),
    ("cvta.to.shared.u64", "", "u64 u64", "a & ~window(shared_space)"),
    ("cvta.to.local.u64", "", "u64 u64", "a & ~window(local_space)"),
    ("mapa.u64", "", "u64 u64 u32", "(a & ~(0xffull << rank_shift)) | (std::uint64_t{b} + 1) << rank_shift"),
    ("mapa.shared::cluster.u32", "", "u32 u32 u32", "(a & ~(0xffu << rank_shift)) | (b + 1) << rank_shift"),
    ("createpolicy.fractional.L2::evict_first.b64", "", "b64 f32", "0"),  # a cache policy changes no value
    ("createpolicy.fractional.L2::evict_last.b64", "", "b64 f32", "0"),
    # float32
    ("add[.rn][.ftz].f32", "", "f32 f32 f32", "a + b"),
    ("sub[.rn][.ftz].f32", "", "f32 f32 f32", "a - b"),
    ("mul[.rn][.ftz].f32", "", "f32 f32 f32", "a * b"),
    ("fma.rn[.ftz].f32", "", "f32 f32 f32 f32", "std::fma(a, b, c)"),
    ("fma.rm.f32", "", "f32 f32 f32 f32", "fma_rounded_down(a, b, c)"),
    ("div.rn.f32", "", "f32 f32 f32", "a / b"),
    ("div.full[.ftz].f32", "", "f32 f32 f32", "noise.quotient(a, b)"),
    ("div.approx[.ftz].f32", "", "f32 f32 f32", "noise.quotient(a, b)"),
    ("rcp.approx[.ftz].f32", "", "f32 f32", "noise.reciprocal(a)"),
    ("rcp.rn.f32", "", "f32 f32", "1.0f / a"),
    ("sqrt.rn.f32", "", "f32 f32", "std::sqrt(a)"),
    ("sqrt.approx[.ftz].f32", "", "f32 f32", "noise.root(a)"),
    ("rsqrt.approx[.ftz].f32", "", "f32 f32", "noise.reciprocal_root(a)"),
    ("ex2.approx[.ftz].f32", "", "f32 f32", "noise.exp2(a)"),
    ("lg2.approx[.ftz].f32", "", "f32 f32", "noise.log2(a)"),
    ("tanh.approx.f32", "", "f32 f32", "noise.tanh(a)"),
    ("min[.ftz].f32", "", "f32 f32 f32", "least(a, b)"),
    ("max[.ftz].f32", "", "f32 f32 f32", "greatest(a, b)"),
    ("min[.ftz].NaN.f32", "", "f32 f32 f32", "a != a || b != b ? NAN : least(a, b)"),
    ("max[.ftz].NaN.f32", "", "f32 f32 f32", "a != a || b != b ? NAN : greatest(a, b)"),
    ("neg[.ftz].f32", "", "f32 f32", "-a"),
    ("abs[.ftz].f32", "", "f32 f32", "std::fabs(a)"),
    ("copysign.f32", "", "f32 f32 f32", "std::copysign(b, a)"),
    # float64
    ("add[.rn].f64", "", "f64 f64 f64", "a + b"),
    ("sub[.rn].f64", "", "f64 f64 f64", "a - b"),
    ("mul[.rn].f64", "", "f64 f64 f64", "a * b"),
    ("fma.rn.f64", "", "f64 f64 f64 f64", "std::fma(a, b, c)"),
    ("div.rn.f64", "", "f64 f64 f64", "a / b"),
    ("min.f64", "", "f64 f64 f64", "least(a, b)"),
    ("max.f64", "", "f64 f64 f64", "greatest(a, b)"),
    ("neg.f64", "", "f64 f64", "-a"),
    ("abs.f64", "", "f64 f64", "std::fabs(a)"),
    # 16-bit numbers, alone and in pairs
    ("min.T", "f16 bf16", "T T T", "least(a, b)"),
    ("max.T", "f16 bf16", "T T T", "greatest(a, b)"),
    ("min.Tx2", "f16 bf16", "b32 b32 b32", "in_pairs<T>(a, b, least<T>)"),
    ("max.Tx2", "f16 bf16", "b32 b32 b32", "in_pairs<T>(a, b, greatest<T>)"),
    # conversions
    *((f"cvt.T.{source}", INTEGERS, f"T {source}", "a") for source in (*INTEGERS.split(), "u8", "s8")),
    ("cvt.rn.f32.T", INTEGERS, "f32 T", "a"),
    ("cvt.rn.f64.T", INTEGERS, "f64 T", "a"),
    ("cvt.rzi[.ftz].T.f32", INTEGERS, "T f32", "to_integer<T>(std::trunc(a))"),
    ("cvt.rni[.ftz].T.f32", INTEGERS, "T f32", "to_integer<T>(std::nearbyint(a))"),
    ("cvt.rmi[.ftz].T.f32", INTEGERS, "T f32", "to_integer<T>(std::floor(a))"),
    ("cvt.rzi.T.f64", INTEGERS, "T f64", "to_integer<T>(std::trunc(a))"),
    ("cvt.rzi[.ftz].f32.f32", "", "f32 f32", "std::trunc(a)"),
    ("cvt.rmi[.ftz].f32.f32", "", "f32 f32", "std::floor(a)"),
    ("cvt.rpi[.ftz].f32.f32", "", "f32 f32", "std::ceil(a)"),
    ("cvt.sat.f32.f32", "", "f32 f32", "a > 0.0f ? std::min(a, 1.0f) : 0.0f"),
    ("cvt.f64.f32", "", "f64 f32", "a"),
    ("cvt.rn.f32.f64", "", "f32 f64", "a"),
    ("cvt.f32.T", "f16 bf16", "f32 T", "a"),
    ("cvt.rn.T.f32", "f16 bf16", "T f32", "a"),
    ("cvt.rn.Tx2.f32", "f16 bf16", "b32 f32 f32", "pair_of<T>(a, b)"),
)

# Special registers. One-dimensional blocks and clusters are supported.
SPECIAL = (
    *("tid_x", "ntid_x", "ctaid_x", "ctaid_y", "ctaid_z", "nctaid_x", "nctaid_y", "nctaid_z", "laneid", "warpid"),
    *("cluster_ctarank", "cluster_nctarank", "cluster_ctaid_x", "cluster_nctaid_x", "clusterid_x", "nclusterid_x"),
    *("lanemask_lt", "lanemask_le", "lanemask_eq", "one", "zero"),
)
SPECIAL_ALIASES = {"tid_y": "zero", "tid_z": "zero", "ntid_y": "one", "ntid_z": "one"}

# Operations with code in executor/machine.cpp, and their modes.
OPERATIONS = (
    *("bra", "exit", "ld", "st", "atom", "cp_async", "cp_async_commit_group", "cp_async_wait_group", "cp_async_wait_all"),
    *("bar_sync", "bar_warp_sync", "barrier_cluster_arrive", "barrier_cluster_wait"),
    *("matrix", "shfl", "vote", "redux", "trap", "pack", "unpack", "nop"),
)
MODES = {
    "ATOM": ("add", "or", "and", "xor", "exch", "min", "max", "cas"),
    "SHFL": ("up", "down", "bfly", "idx"),
    "VOTE": ("ballot", "any", "all", "uni"),
    "REDUX": ("add", "and", "or", "xor", "min_s32", "max_s32", "min_u32", "max_u32"),
}
# Instructions without an effect on values here: all accesses are in order.
NO_EFFECT = ("membar.cta", "membar.gl", "fence.acq_rel.cta", "fence.acq_rel.gpu", "fence.acq_rel.cluster")

_CPP = {
    "pred": "bool",
    **{f"{sign}{bits}": f"std::{'' if sign == 's' else 'u'}int{bits}_t" for sign in "usb" for bits in (8, 16, 32, 64)},
    "f16": "Float16",
    "bf16": "Bfloat16",
    "f32": "float",
    "f64": "double",
}


class Operation(NamedTuple):
    """An instruction of `ARITHMETIC` for given types: its number, its result type and the types of its operands."""

    number: int
    types: tuple[str, ...]
    expression: str


def _mnemonics(pattern: str) -> Iterator[str]:
    parts = re.split(r"\[(\.\w+)\]", pattern)
    for chosen in itertools.product((False, True), repeat=len(parts) // 2):
        options = iter(chosen)
        yield "".join(part if i % 2 == 0 or next(options) else "" for i, part in enumerate(parts))


def _arithmetic() -> dict[str, Operation]:
    operations: dict[str, Operation] = {}
    for pattern, types, signature, expression in ARITHMETIC:
        for kind in types.split() or [""]:
            types_of = {"T": kind, "W": WIDER.get(kind, "")}
            resolved = tuple(types_of.get(x, x) for x in signature.split())
            code = expression
            for letter, named in types_of.items():
                code = re.sub(rf"\b{letter}\b", _CPP.get(named, letter), code)
            for mnemonic in _mnemonics(re.sub(r"\bT|(?<=\.)T", kind, pattern)):
                operations[mnemonic] = Operation(len(OPERATIONS) + len(operations), resolved, code)
    return operations


OPERATION_OF = _arithmetic()


def enumerations() -> str:
    """Returns executor/operations.h: the numbers of operations, modes and special registers."""
    numbers = {"OP": OPERATIONS, "SPECIAL": SPECIAL, **MODES}
    lines = [f"enum {{ {', '.join(f'{kind}_{name}' for name in names)} }};" for kind, names in numbers.items()]
    return "\n".join(["#pragma once", "namespace ptx {", *lines, "}", ""])


def cases() -> str:
    """Returns executor/operations.inc: a case of the executor's switch for every instruction of the table."""
    lines = []
    for mnemonic, operation in OPERATION_OF.items():
        result, *operands = [_CPP[kind] for kind in operation.types]
        flushes = ".ftz" in mnemonic
        parameters = ", ".join(f"[[maybe_unused]] {kind} {name}" for kind, name in zip(operands, "abcd"))
        flushed = [f"{name} = flushed({name});" for name, kind in zip("abcd", operands) if flushes and kind == "float"]
        value = f"{result}({operation.expression})"
        value = f"flushed({value})" if flushes and result == "float" else value
        code = f"each_lane<{', '.join((result, *operands))}>(r, instruction, mask, [&]({parameters}) {{"
        lines.append(f"case {operation.number}:  // {mnemonic}\n{code} {' '.join(flushed)} return {value}; }}); return;")
    return "\n".join(lines) + "\n"
