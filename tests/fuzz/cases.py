"""Draws the cases. A case is a frozen record of all choices of one call; the same numbers always draw the same case."""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import numpy as np

LINEAR, TOPK = ("linear_span_kl", "linear_topk"), ("topk", "ce", "linear_topk")
OPS = ("span_kl", "span_kl", "span_kl", "topk", "topk", "ce", "linear_span_kl", "linear_topk")
DTYPES = ("float32", "float32", "float32", "bfloat16", "bfloat16", "float16", "float16")
MAGNITUDES = (
    ("normal",) * 4 + ("peaked",) * 4 + ("near", "near", "equal", "flat", "offset", "offset", "wide", "huge", "tiny")
)
MAGNITUDES += ("student -inf", "teacher -inf", "both -inf", "dead row", "nan row")
LINEAR_MAGNITUDES = ("normal", "normal", "peaked", "near", "near", "equal", "flat", "tiny")
MASKS = ("some",) * 6 + ("none", "all", "all", "reason", "one row", "other ids")
ID_DTYPES = ("int64", "int64", "int32", "int16", "int8", "uint8")
COLUMNS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 67, 100, 128, 129, 255, 257, 300, 511, 1000, 1025, 2049, 5003)
TINY_COLUMNS = (1, 2, 3, 7, 8, 15, 16, 17, 33, 67, 130)


class Layout(NamedTuple):
    """Where the rows of a (..., V) tensor are in its storage.

    Attributes:
        order: The leading dimensions from the innermost to the outermost in memory.
        expanded: Per leading dimension: whether its stride is 0.
        gaps: Per leading dimension: unused entries behind its end.
        pad: Unused elements between rows. A negative number lets neighboring rows overlap.
        offset: Elements before the first row.
    """

    order: tuple[int, ...]
    expanded: tuple[bool, ...]
    gaps: tuple[int, ...]
    pad: int = 0
    offset: int = 0


class Case(NamedTuple):
    """One call of one loss.

    Attributes:
        seed: The first argument of `draw`; `index` and `tiny` are the others.
        op: An entry of `OPS`.
        tensor_seed: The seed of the random numbers in the tensors.
        dtypes: Of student and teacher (of the log-probabilities, if the teacher is a top-k list).
        shape: (...,), the shape of the span ids.
        columns: V of student and teacher.
        layouts: Of the student's logits or hidden states, and of the teacher's logits, hidden states or top-k list.
        magnitude: An entry of `MAGNITUDES`: what the logits look like.
        scale: The standard deviation of random logits.
        offset: The common offset of the logits of a row, for the magnitude "offset".
        mask: An entry of `MASKS`.
        id_dtype: Of the span ids and all other ids.
        poison: Whether rows and columns that must not be read hold NaN and infinity.
        upstream: The upstream gradient: a number, or None for one random number per row (reduction "none").
        threads: The number of threads of PyTorch.
        again: The second call: "repeat" (same bits), "threads" (another number of threads), "no grad", "retain graph".
        options: The keyword arguments that are not tensors, sorted by name.
        k: Length of the teacher's list.
        missing: Fraction of the entries of the list that are absent, repeated or -inf.
        labels: Whether targets are passed.
        hidden: H of student and teacher.
        biases: Whether student and teacher have a bias.
        rows: How `rows` is passed to a linear loss: "none", "supervised" or "all".
        wants: Whether hidden states, weight and bias require a gradient.
        tensor_normalizer: Whether the normalizer is a tensor.
        token_weights: Whether tokens have weights.
        turn_ids: Whether the turns of "turn_mean" are given.
    """

    seed: int
    index: int
    tiny: bool
    op: str
    tensor_seed: int
    dtypes: tuple[str, str]
    shape: tuple[int, ...]
    columns: tuple[int, int]
    layouts: tuple[Layout, Layout]
    magnitude: str
    scale: float
    offset: float
    mask: str
    id_dtype: str
    poison: bool
    upstream: float | None
    threads: int
    again: str
    options: tuple[tuple[str, Any], ...]
    k: int
    missing: float
    labels: bool
    hidden: tuple[int, int]
    biases: tuple[bool, bool]
    rows: str
    wants: tuple[bool, bool, bool]
    tensor_normalizer: bool
    token_weights: bool
    turn_ids: bool

    @property
    def linear(self) -> bool:
        """Whether the loss takes hidden states."""
        return self.op in LINEAR

    def option(self, name: str, default: Any = None) -> Any:
        """The value of a keyword argument."""
        return dict(self.options).get(name, default)

    @property
    def vocab_size(self) -> int:
        """The number of columns of the softmaxes."""
        shared = self.columns[0] if self.op in TOPK else min(self.columns)
        return self.option("vocab_size", shared)

    @property
    def lambdas(self) -> np.ndarray:
        """(4,): the weights of the kinds."""
        names = (("lambda_reason", 1.0), ("lambda_act", 1.0), ("lambda_observe", 0.0))
        return np.array([0.0, *(self.option(name, default) for name, default in names)])

    def per_side(self, name: str) -> tuple[float | None, float | None]:
        """`logit_scale` or `logit_softcap` of student and teacher."""
        value = self.option(name)
        return value if isinstance(value, tuple) else (value, value)


def draw(seed: int, index: int, tiny: bool = False) -> Case:
    """The case with this number.

    Args:
        seed: The series of cases.
        index: The number of the case in the series.
        tiny: Few rows and columns, for backends that interpret or emulate a GPU.
    """
    rng = random.Random(f"{seed}/{index}/{tiny}")
    op = rng.choice(OPS)
    linear = op in LINEAR
    shape = _shape(rng, tiny)
    rows = math.prod(shape)
    columns = _columns(rng, tiny, rows, linear)
    teacher_columns = columns
    if op in ("span_kl", "linear_span_kl") and rng.random() < 0.3:
        teacher_columns = max(1, columns + rng.choice((-8, -3, -1, 1, 3, 8, 64)))
    student_dtype = rng.choice(DTYPES)
    teacher_dtype = student_dtype if rng.random() < 0.6 else rng.choice(DTYPES)
    magnitude = rng.choice(LINEAR_MAGNITUDES if linear else MAGNITUDES)
    k = min(columns, rng.choice((1, 2, 3, 5, 8, 16, 40, columns)))
    if tiny:
        k = min(k, 6)
    labels = op == "ce" or (op in TOPK and rng.random() < 0.6)
    options = _options(rng, op, labels, columns, teacher_columns, linear)
    inplace = bool(options.get("inplace_backward"))
    layouts = (_layout(rng, shape, columns, writable=inplace), _layout(rng, shape, teacher_columns, writable=False))
    none = options["reduction"] == "none"
    return Case(
        seed,
        index,
        tiny,
        op,
        rng.getrandbits(48),
        (student_dtype, teacher_dtype),
        shape,
        (columns, teacher_columns),
        layouts,
        magnitude,
        scale=rng.choice((0.3, 1.0, 3.0, 3.0, 6.0)),
        offset=rng.choice((-1, 1)) * rng.choice((30.0, 100.0, 1e3, 1e4)),
        mask=rng.choice(MASKS),
        id_dtype=rng.choice(ID_DTYPES),
        poison=rng.random() < 0.4,
        upstream=None if none and rng.random() < 0.7 else rng.choice((1.0, 1.0, -0.37, 3.0, 1024.0, 0.0)),
        threads=rng.choice((1, 1, 1, 2, 3)),
        again=rng.choice(("repeat", "repeat", "threads", "no grad") + (() if inplace else ("retain graph",))),
        options=tuple(sorted(options.items())),
        k=k,
        missing=rng.choice((0.0, 0.0, 0.2, 0.6, 1.0)),
        labels=labels,
        hidden=(rng.choice((1, 2, 5, 8, 16, 24)), rng.choice((1, 3, 8, 17))),
        biases=(rng.random() < 0.5, rng.random() < 0.5),
        rows=rng.choice(("none", "none", "supervised", "all")),
        wants=_wants(rng),
        tensor_normalizer=rng.random() < 0.4,
        token_weights=rng.random() < 0.3,
        turn_ids=options["reduction"] == "turn_mean" and rng.random() < 0.5,
    )


def _shape(rng: random.Random, tiny: bool) -> tuple[int, ...]:
    if rng.random() < 0.02:
        return rng.choice(((0,), (2, 0), (0, 3), (2, 0, 2)))
    dims = rng.choice((1, 2, 2, 3))
    if tiny:
        return tuple(rng.choice((1, 2, 3)) for _ in range(dims)) if dims < 3 else (2, 1, 2)
    return tuple(rng.choice((1, 2, 3, 5, 9) if dims < 3 else (1, 2, 3)) for _ in range(dims))


def _columns(rng: random.Random, tiny: bool, rows: int, linear: bool) -> int:
    if tiny:
        return rng.choice(TINY_COLUMNS)
    if rng.random() < 0.01 and rows <= 9 and not linear:
        return rng.choice((32_003, 40_960))
    return rng.choice([v for v in COLUMNS if v * rows <= 30_000])


def _layout(rng: random.Random, shape: tuple[int, ...], columns: int, writable: bool) -> Layout:
    dims = len(shape)
    kinds = ("contiguous",) * 3 + ("offset", "padded")
    if not (writable and dims == 3):  # in place there are at most two strides
        kinds += ("gaps", "permuted", "expanded", "overlap", "all")
    kind = rng.choice(kinds)
    order, expanded, gaps, pad, offset = tuple(reversed(range(dims))), (False,) * dims, (0,) * dims, 0, 0
    if kind in ("offset", "all"):
        offset = rng.choice((1, 2, 3, 4, 7, 8))
    if kind in ("padded", "all"):
        pad = rng.choice((1, 2, 3, 5, 8, 16))
    if kind in ("gaps", "all"):
        gaps = tuple(rng.choice((0, 1, 2)) for _ in range(dims))
    if kind in ("permuted", "all"):
        order = tuple(rng.sample(range(dims), dims))
    if not writable and (kind == "expanded" or (kind == "all" and rng.random() < 0.3)):
        expanded = tuple(rng.random() < 0.5 for _ in range(dims))
    if kind == "overlap" and not writable and columns > 1:
        pad = -rng.randint(1, columns - 1)
    return Layout(order, expanded, gaps, pad, offset)


def _options(rng: random.Random, op: str, labels: bool, columns: int, teacher_columns: int, linear: bool) -> dict[str, Any]:
    """Keyword arguments; those with their default value are left out, except the reduction."""
    options: dict[str, Any] = {"reduction": rng.choice(("mean", "sum", "span_mean", "turn_mean", "none"))}

    def maybe(probability: float, name: str, *values: Any) -> None:
        if rng.random() < probability:
            options[name] = rng.choice(values)

    maybe(0.4, "lambda_reason", 0.0, 0.25, 3.0)
    maybe(0.4, "lambda_act", 0.0, 0.5, 2.0)
    maybe(0.3, "lambda_observe", 0.1, 1.5)
    maybe(0.5, "temperature", 0.05, 0.5, 0.7, 2.0, 2.5, 10.0)
    maybe(0.3, "shift", True)
    maybe(0.4, "return_stats", True)
    if options["reduction"] in ("mean", "turn_mean"):
        maybe(0.3, "normalizer", 17, 3.5, 1)
    elif options["reduction"] == "span_mean":
        maybe(0.3, "normalizer", (5, 11, 3), (2.5, 1.0, 4.0))
    shared = columns if op in TOPK else min(columns, teacher_columns)
    if rng.random() < 0.2:
        options["vocab_size"] = rng.randint(max(1, shared // 2), shared)
    one_side = op in TOPK
    for name, values in (("logit_scale", (0.1, 0.125, 1.7, 4.0)), ("logit_softcap", (1.5, 15.0, 30.0))):
        if rng.random() < 0.2:
            value = rng.choice(values)
            both = one_side or rng.random() < 0.4
            options[name] = value if both else (value, rng.choice(values) if name == "logit_scale" else None)
    if op in ("span_kl", "linear_span_kl"):
        maybe(0.6, "divergence", "reverse_kl", "jsd")
        if options.get("divergence") == "jsd":
            maybe(0.7, "beta", 0.1, 0.9, 0.3, 1e-3, 0.999, 1e-6, 1 - 1e-6, 1e-10)
    if op in ("topk", "linear_topk"):
        maybe(0.5, "tail", "ignore")
        if labels:
            options["alpha"] = rng.choice((0.0, 0.5, 0.9, 1.0))
    if linear:
        maybe(0.5, "chunk_bytes", 1, 600, 5000, 100_000)
    else:
        maybe(0.2, "inplace_backward", True)
    return options


def _wants(rng: random.Random) -> tuple[bool, bool, bool]:
    wants = tuple(rng.random() < 0.75 for _ in range(3))
    return wants if wants[0] or wants[1] else (True, wants[1], wants[2])
