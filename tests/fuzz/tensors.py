"""Builds the tensors of a case, from its seed alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.fuzz.cases import Case, Layout

GUARD = 7.0  # storage that belongs to no row


class Tensors(NamedTuple):
    """The arguments of a call, on the CPU. None if the loss does not have the argument.

    Attributes:
        student: Logits or hidden states (..., V or H) in their layout; `weight` and `bias` are the head.
        teacher: Logits or hidden states (..., V or H).
        upstream: A scalar, or one number per row.
        read: (N,) bool, the rows that a loss may read.
    """

    student: Tensor
    weight: Tensor | None
    bias: Tensor | None
    teacher: Tensor | None
    teacher_weight: Tensor | None
    teacher_bias: Tensor | None
    logprobs: Tensor | None
    ids: Tensor | None
    target_ids: Tensor | None
    span_ids: Tensor
    token_weights: Tensor | None
    turn_ids: Tensor | None
    normalizer: Tensor | None
    rows: Tensor | None
    upstream: Tensor
    read: np.ndarray


def build(case: Case) -> Tensors:
    """The tensors of the case."""
    g = torch.Generator().manual_seed(case.tensor_seed)
    span_ids = _span_ids(case, g)
    token_weights = _token_weights(case, g) if case.token_weights else None
    turn_ids = torch.randint(-1, 2, case.shape, generator=g).to(torch.int32) if case.turn_ids else None
    kinds = kinds_of_rows(case, span_ids, token_weights)
    read = _read(case, kinds)
    student, teacher, logprobs, ids = None, None, None, None
    weight = bias = teacher_weight = teacher_bias = None
    if case.linear:
        student, weight, bias, teacher, teacher_weight, teacher_bias = _heads(case, g, read)
        full = _logits(case, g, case.columns[1])  # where a top-k list comes from
    else:
        student_full = _logits(case, g, case.columns[0])
        full = _teacher_logits(case, g, student_full)
        _special(case, g, student_full, full, kinds)
        student = lay_out(_poisoned(case, student_full, read, case.layouts[0]), case.layouts[0], dtype(case.dtypes[0]))
        if case.op == "span_kl":
            teacher = lay_out(_poisoned(case, full, read, case.layouts[1]), case.layouts[1], dtype(case.dtypes[1]))
    targets = None
    if case.op in ("topk", "linear_topk"):
        logprobs, ids = _topk(case, g, full, read)
    if case.labels:
        targets = torch.randint(0, case.columns[0], case.shape, generator=g)
        bad = torch.rand(case.shape, generator=g) < 0.1
        targets = torch.where(bad, torch.randint(-120, 0, case.shape, generator=g), targets).to(_target_dtype(case))
    normalizer = case.option("normalizer")
    if normalizer is not None:
        normalizer = torch.tensor(normalizer) if case.tensor_normalizer else None
    rows = None
    if case.linear and case.rows != "none":
        numbers = np.flatnonzero(kinds) if case.rows == "supervised" else np.arange(len(kinds))
        rows = torch.from_numpy(numbers)[torch.randperm(len(numbers), generator=g)]
        if logprobs is not None:
            logprobs, ids = (x.reshape(-1, x.shape[-1])[rows] for x in (logprobs, ids))
    shape = case.shape if case.option("reduction") == "none" else ()
    if case.upstream is None:
        upstream = torch.randn(shape, generator=g) * (torch.rand(shape, generator=g) < 0.8)
    else:
        upstream = torch.full(shape, case.upstream)
    heads = (student, weight, bias, teacher, teacher_weight, teacher_bias)
    return Tensors(*heads, logprobs, ids, targets, span_ids, token_weights, turn_ids, normalizer, rows, upstream, read)


def dtype(name: str) -> torch.dtype:
    return getattr(torch, name)


def of_rows(case: Case, tokens: Tensor) -> np.ndarray:
    """(...,): the entry that belongs to each row; with `shift` row t has that of token t + 1, and the last row 0."""
    values = tokens.numpy()
    if not case.option("shift"):
        return values
    moved = np.zeros_like(values)
    moved[..., :-1] = values[..., 1:]
    return moved


def kinds_of_rows(case: Case, span_ids: Tensor, token_weights: Tensor | None) -> np.ndarray:
    """(N,): 1 reason, 2 act, 3 observe if it has a weight; 0 any other id, and tokens of weight 0."""
    ids = of_rows(case, span_ids)
    kinds = np.where((ids == 1) | (ids == 2) | ((ids == 3) & bool(case.option("lambda_observe"))), ids, 0).astype(np.int64)
    if token_weights is not None:
        kinds = np.where(of_rows(case, token_weights) == 0, 0, kinds)
    return kinds.reshape(-1)


def _token_weights(case: Case, g: torch.Generator) -> Tensor:
    """Weights of very different sizes, and zeros."""
    weights = torch.rand(case.shape, generator=g) * 10.0 ** torch.randint(-3, 3, case.shape, generator=g)
    return torch.where(torch.rand(case.shape, generator=g) < 0.2, 0.0, weights)


def _read(case: Case, kinds: np.ndarray) -> np.ndarray:
    """A row of weight 0 is read only if its value or its statistics are returned."""
    if case.option("reduction") == "none" or case.option("return_stats"):
        return kinds != 0
    return case.lambdas[kinds] != 0


def _span_ids(case: Case, g: torch.Generator) -> Tensor:
    kind = dtype(case.id_dtype)
    others = (0, 7, 77, 255) if kind == torch.uint8 else (0, 4, 7, 77, -100)
    ids = torch.tensor(others)[torch.randint(0, len(others), case.shape, generator=g)]
    known = torch.randint(1, 4, case.shape, generator=g)
    chosen = torch.rand(case.shape, generator=g) < 0.6
    if case.mask == "all":
        chosen = torch.ones_like(chosen)
    elif case.mask in ("none", "other ids"):
        chosen = torch.zeros_like(chosen)
        ids = ids if case.mask == "other ids" else torch.zeros_like(ids)
    elif case.mask == "reason":
        known = torch.ones_like(known)
    elif case.mask == "one row" and chosen.numel():
        chosen = torch.zeros_like(chosen)
        chosen.view(-1)[int(torch.randint(0, chosen.numel(), (), generator=g))] = True
    return torch.where(chosen, known, ids).to(kind)


def _target_dtype(case: Case) -> torch.dtype:
    """A dtype that holds every column and -120."""
    return torch.int32 if case.id_dtype == "int32" else torch.int64


def _normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def _logits(case: Case, g: torch.Generator, columns: int) -> Tensor:
    """(..., V) float64 logits of the case's magnitude, before they are rounded to a dtype."""
    x = _normal(g, *case.shape, columns) * case.scale
    kind = case.magnitude
    if kind == "flat":
        return x[..., :1].expand(x.shape).clone()
    if kind == "tiny":
        return x * 1e-4
    if kind == "offset":
        return x + case.offset
    if kind == "wide":
        return x * 100.0
    if kind == "huge":
        largest = {"float16": 6e4, "bfloat16": 1e30, "float32": 1e30}[case.dtypes[0]]
        return torch.where(torch.rand(x.shape, generator=g) < 0.3, largest * torch.sign(x), x)
    if kind in ("peaked", "near") or (columns > 64 and kind in ("student -inf", "teacher -inf")):
        return x + 8.0 * (torch.rand(x.shape, generator=g) > 0.97)
    return x


def _teacher_logits(case: Case, g: torch.Generator, student: Tensor) -> Tensor:
    columns = case.columns[1]
    x = _logits(case, g, columns)
    shared = min(columns, student.shape[-1])
    if case.magnitude == "equal":
        x[..., :shared] = student[..., :shared]
    elif case.magnitude == "near":
        step = float(torch.tensor([1e-4, 1e-3, 1e-2])[torch.randint(0, 3, (), generator=g)])
        x[..., :shared] = student[..., :shared] + step * _normal(g, *case.shape, shared)
    return x


def _special(case: Case, g: torch.Generator, student: Tensor, teacher: Tensor, kinds: np.ndarray) -> None:
    """Writes infinities and NaN in place."""
    if case.magnitude.endswith("-inf"):
        masks = [torch.rand(x.shape, generator=g) < 0.3 for x in (student, teacher)]
        for mask in masks:
            mask[..., 0] = False
        if case.magnitude.startswith("both"):
            shared = min(student.shape[-1], teacher.shape[-1])
            masks[1][..., :shared] = masks[0][..., :shared]
        for side, x, mask in zip(("student", "teacher"), (student, teacher), masks):
            if case.magnitude.startswith((side, "both")):
                x[mask] = -math.inf
    rows = np.flatnonzero(kinds)
    if case.magnitude in ("dead row", "nan row") and len(rows):
        side = student if torch.rand((), generator=g) < 0.5 else teacher
        row = side.view(-1, side.shape[-1])[int(rows[0])]
        if case.magnitude == "dead row":
            row.fill_(-math.inf)
        else:
            row[int(torch.randint(0, case.vocab_size, (), generator=g))] = math.nan


def _poisoned(case: Case, x: Tensor, read: np.ndarray, layout: Layout) -> Tensor:
    """Writes NaN to the rows that are not read, and infinity beyond `vocab_size`, unless rows share memory."""
    if case.poison and layout.pad >= 0 and not any(layout.expanded):
        x = x.clone()
        flat = x.flatten(0, -2)
        flat[torch.from_numpy(~read)] = math.nan
        if not case.linear:
            flat[:, case.vocab_size :] = math.inf
    return x


def lay_out(x: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """A view with the values of `x` (..., V) and this layout. Rows that share memory have the values of one of them."""
    columns = x.shape[-1]
    strides, stride = [0] * (x.dim() - 1), max(1, columns + layout.pad)
    for d in layout.order:
        if not layout.expanded[d]:
            strides[d] = stride
            stride *= max(1, x.shape[d]) + layout.gaps[d]
    size = layout.offset + stride + columns + 8
    storage = torch.full((size,), GUARD, dtype=dtype)
    view = storage.as_strided(x.shape, (*strides, 1), layout.offset)
    narrow = tuple(slice(0, 1) if e else slice(None) for e in layout.expanded)
    if layout.pad >= 0:
        view[narrow].copy_(x[narrow])
    else:  # rows overlap: the storage is filled with numbers of the case, whatever the row is
        values = x.reshape(-1)
        if len(values):
            storage[layout.offset :] = values.repeat(-(-size // len(values)))[: size - layout.offset].to(dtype)
    return view


def _heads(case: Case, g: torch.Generator, read: np.ndarray) -> tuple[Tensor | None, ...]:
    """Hidden states, weight and bias of student and teacher. Logits have about the case's scale."""
    kinds = [dtype(name) for name in case.dtypes]
    h = case.hidden[0]
    factor = 1e-3 if case.magnitude == "tiny" else case.scale
    hidden = _normal(g, *case.shape, h)
    weight = _normal(g, case.columns[0], h) * (factor / math.sqrt(h))
    bias = _normal(g, case.columns[0]) * factor if case.biases[0] else None
    if case.magnitude == "flat":
        weight = weight[:1].expand(weight.shape).clone()
    if case.magnitude == "peaked":
        weight[torch.rand(len(weight), generator=g) > 0.95] *= 3
    if case.op == "linear_topk":
        layout = case.layouts[0]
        student = lay_out(_poisoned(case, hidden, read, layout), layout, kinds[0])
        return student, weight.to(kinds[0]), None if bias is None else bias.to(kinds[0]), None, None, None
    t = h if case.magnitude in ("near", "equal") else case.hidden[1]
    if case.magnitude in ("near", "equal"):
        step = 1e-3 if case.magnitude == "near" else 0.0
        shared = min(case.columns)
        t_hidden = hidden + step * _normal(g, *hidden.shape)
        t_weight = _normal(g, case.columns[1], t) * (factor / math.sqrt(t))
        t_weight[:shared] = weight[:shared]
        t_bias = None if bias is None else _normal(g, case.columns[1])
        if t_bias is not None:
            t_bias[:shared] = bias[:shared]
    else:
        t_hidden = _normal(g, *case.shape, t)
        t_weight = _normal(g, case.columns[1], t) * (factor / math.sqrt(t))
        t_bias = _normal(g, case.columns[1]) * factor if case.biases[1] else None
    student = lay_out(_poisoned(case, hidden, read, case.layouts[0]), case.layouts[0], kinds[0])
    teacher = lay_out(_poisoned(case, t_hidden, read, case.layouts[1]), case.layouts[1], kinds[1])
    casts = ((weight, kinds[0]), (bias, kinds[0]), (t_weight, kinds[1]), (t_bias, kinds[1]))
    weight, bias, t_weight, t_bias = (None if x is None else x.to(kind) for x, kind in casts)
    return student, weight, bias, teacher, t_weight, t_bias


def _topk(case: Case, g: torch.Generator, full: Tensor, read: np.ndarray) -> tuple[Tensor, Tensor]:
    """The k largest log-probabilities in random order; some are absent, repeated or -inf."""
    k, kind = case.k, dtype(case.dtypes[1])
    usable = torch.nan_to_num(full, nan=0.0, posinf=50.0, neginf=-50.0)[..., : case.columns[0]].clamp(-1e4, 1e4)
    logprobs, ids = torch.log_softmax(usable / case.option("temperature", 1.0), -1).topk(k, dim=-1)
    order = torch.argsort(torch.rand(logprobs.shape, generator=g), dim=-1)
    logprobs, ids = logprobs.gather(-1, order), ids.gather(-1, order)
    change = torch.rand(ids.shape, generator=g) < case.missing
    what = torch.randint(0, 3, ids.shape, generator=g)
    absent = torch.tensor([-1, -100, case.columns[0], 2**31 - 1])[torch.randint(0, 4, ids.shape, generator=g)]
    ids = torch.where(change & (what == 0), absent, ids)
    if case.missing < 1.0:
        ids = torch.where(change & (what == 1), ids[..., :1], ids)  # repeated
        logprobs = torch.where(change & (what == 2) & (logprobs < -1.0), -math.inf, logprobs)
    else:
        ids = torch.where(change, -1, ids)  # rows without columns
    if case.poison:
        logprobs = torch.where(ids < 0, math.nan, logprobs)
        logprobs.flatten(0, -2)[torch.from_numpy(~read)] = math.nan
    layout = case.layouts[1]
    if layout.pad < 0 or any(layout.expanded):
        layout = Layout(layout.order, (False,) * len(case.shape), layout.gaps, 0, layout.offset)
    return lay_out(logprobs, layout, kind), ids.to(_target_dtype(case))
