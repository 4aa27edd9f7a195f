"""The right answer of a case in float64, written from the definitions, and the error that is allowed for each number.

The formulas are those of the textbook, without the rearrangements of the kernels: log-softmax, sum p (log p - log q), and
the gradient by the chain rule. `tests/fuzz/test_oracle.py` checks them with 50 digits.

The allowed error is the first-order effect of rounding, computed with the case's own derivatives:

    z / T           the error E of a column: U (24 + |log-probability|); plus 3 U |z / T| if a scale, a soft cap or a
                    temperature rounds it; plus, for a linear loss, the rounding of the logit and of its product
    value           sum |dvalue/dz| E over both sides + 16 U value; 128 U for entropies, which are sums in float32
    gradient        q (E + sum q E) for a probability q, and so on; U of the row's largest entry; the roundings of its dtype
    linear losses   the errors of the logits' gradients times |weight| and |hidden states|, and the rounding of the products

U = 2**-24 is the rounding of float32. Gradients of common float32 logits may be wrong by 1e-5 of the probabilities.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from tests.fuzz.cases import Case
from tests.fuzz.tensors import Tensors, kinds_of_rows, of_rows

U = 2.0**-24
BASE = 24.0  # roundings of U in an exponent: the log-sum-exp of peaked logits, and the exponential itself
ROUNDING = {"float32": U, "bfloat16": 2.0**-8, "float16": 2.0**-11}
SMALLEST = {"float32": 1e-37, "bfloat16": 1e-37, "float16": 6e-8}  # smaller gradients may be stored as 0
UNDERFLOW = 1e-35  # kernels may flush probabilities that are denormal, and multiply them by a logarithm
LARGEST = {"float32": 3e38, "bfloat16": 3e38, "float16": 6.5e4}
# Roundings of the float32 logits of a chunk. On a CPU without bfloat16 products, each bfloat16 logit is a sum of two.
CHUNK_LOGITS = {"float32": U, "bfloat16": 2.0**-16, "float16": U}


class Bounded(NamedTuple):
    """Numbers and the error allowed for each; an infinite error allows anything."""

    exact: np.ndarray
    error: np.ndarray


class Truth(NamedTuple):
    """What a call must return.

    Attributes:
        loss: A scalar, or (N,) for reduction "none".
        values: (N,), the unweighted values of the rows; 0 on rows of no kind.
        gradients: By name: "student" (N, V or H), "weight" (V, H), "bias" (V,). Those that the case wants.
        zero: (N,) bool, rows without a weight. Their gradient must be exactly 0.
        counts: (3,), the tokens of each kind.
        sums: (3, 3) per kind: values, teacher entropies, student entropies.
        agreements: (3, 2) per kind: the fewest and the most rows with equal argmax.
    """

    loss: Bounded
    values: Bounded
    gradients: dict[str, Bounded]
    zero: np.ndarray
    counts: np.ndarray
    sums: Bounded
    agreements: np.ndarray


class Side(NamedTuple):
    """The distribution of one side.

    Attributes:
        logits: (N, V), what the model returned.
        log: (N, V), the log-probabilities.
        error: (N, V), the error of z / T.
        slope: (N, V), dz / dlogit, and its error.
        clear: (N,) bool, whether the argmax of the logits is certain.
    """

    logits: np.ndarray
    log: np.ndarray
    error: np.ndarray
    slope: Bounded
    clear: np.ndarray

    @property
    def p(self) -> np.ndarray:
        return np.exp(self.log)

    def relative(self) -> np.ndarray:
        """The relative error of a probability: its own exponent's and that of the log-sum-exp."""
        return self.error + _times(self.p, self.error).sum(1, keepdims=True)


class Row(NamedTuple):
    """The results of all rows: value, gradient by z / T of the student, entropy of the teacher, its best column and whether
    that is certain."""

    value: Bounded
    gradient: Bounded
    entropy: Bounded
    best: np.ndarray
    clear: np.ndarray


def truth(case: Case, x: Tensors) -> Truth:
    """The right answer of a case.

    Args:
        case: The case.
        x: Its tensors.
    """
    with np.errstate(all="ignore"):
        return _truth(case, x)


def _truth(case: Case, x: Tensors) -> Truth:
    kinds = kinds_of_rows(case, x.span_ids, x.token_weights)
    student, student_error = _side_logits(case, x, 0)
    q = _softmax(case, student, student_error, 0)
    if case.op in ("span_kl", "linear_span_kl"):
        teacher, teacher_error = _side_logits(case, x, 1)
        p = _softmax(case, teacher, teacher_error, 1)
        row = _divergence(case, q, p)
    else:
        row = _topk(case, x, q)
    supervised = kinds != 0
    values = Bounded(np.where(supervised, row.value.exact, 0), np.where(supervised, row.value.error, 0))
    weights, row_weights = _weights(case, x, kinds)
    used = row_weights != 0
    if case.option("reduction") == "none":
        loss = Bounded(values.exact, values.error + 1e-12)
    else:
        parts = np.where(used, row_weights * values.exact, 0)
        error = np.where(used, np.abs(row_weights) * values.error, 0).sum() + 8 * U * np.abs(parts).sum() + 1e-12
        loss = Bounded(parts.sum(), error)
    active = row_weights != 0
    h = _entropy(q)
    sums, agreements = np.zeros((2, 3, 3)), np.zeros((3, 2), dtype=np.int64)
    low, high = _agree((student.argmax(1) if student.size else row.best, row.best), q.clear & row.clear)
    for kind in range(3):
        of_kind = kinds == kind + 1
        for at, part in enumerate((values, row.entropy, h)):
            sums[:, kind, at] = (
                part.exact[of_kind].sum(),
                part.error[of_kind].sum() + 8 * U * np.abs(part.exact[of_kind]).sum(),
            )
        agreements[kind] = low[of_kind].sum(), high[of_kind].sum()
    counts = np.array([(kinds == kind).sum() for kind in (1, 2, 3)])
    gradient = _by_logits(case, row.gradient, q.slope, weights, active)
    gradients = _by_inputs(case, x, gradient, active)
    return Truth(loss, values, gradients, ~active, counts, Bounded(*sums), agreements)


# --- logits and distributions ---


def flat(x: torch.Tensor) -> np.ndarray:
    """(N, V) float64."""
    return x.detach().double().reshape(math.prod(x.shape[:-1]), x.shape[-1]).numpy()


def _side_logits(case: Case, x: Tensors, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The logits of a side and the error of each."""
    v = case.vocab_size
    rows = flat((x.student, x.teacher)[side])
    rows = np.where(x.read[:, None], rows, 0.0)
    if not case.linear:
        return rows[:, :v], np.zeros((len(rows), v))
    weight = flat((x.weight, x.teacher_weight)[side])[:v]
    bias = (x.bias, x.teacher_bias)[side]
    bias = np.zeros(v) if bias is None else bias.detach().double().numpy()[:v]
    logits = rows @ weight.T + bias
    size = np.abs(rows) @ np.abs(weight).T + np.abs(bias)
    rounding = CHUNK_LOGITS[case.dtypes[side]]
    return logits, 4 * U * size + rounding * (np.abs(logits) + np.abs(logits - bias) * (rounding > U))


def _softmax(case: Case, logits: np.ndarray, logit_error: np.ndarray, side: int) -> Side:
    scale, cap = case.per_side("logit_scale")[side] or 1.0, case.per_side("logit_softcap")[side]
    temperature = case.option("temperature", 1.0)
    z, slope, slope_error = logits * scale, np.full_like(logits, scale), np.zeros_like(logits)
    if cap is not None:
        t = np.tanh(z / cap)
        slope = scale / np.cosh(z / cap) ** 2
        slope_error = 8 * U * scale + np.abs(2 * t * slope) * scale / cap * logit_error
        z = cap * t
    z = z / temperature
    top = z.max(1, keepdims=True)
    log = z - top - np.log(np.exp(z - top).sum(1, keepdims=True))
    exact = cap is None and math.frexp(scale)[0] == 0.5 and math.frexp(temperature)[0] == 0.5
    size = np.where(np.isfinite(z), np.abs(z), 0).max(1, keepdims=True)
    rounded = 0.0 if exact else 3.0
    error = U * (BASE + np.where(np.isfinite(log), np.abs(log), 0) + rounded * size) + logit_error * slope / temperature
    error = np.nan_to_num(error, nan=np.inf, posinf=np.inf)
    return Side(logits, log, error, Bounded(slope, slope_error), _clear(logits, logit_error))


def _times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a b, with 0 times infinity = 0."""
    return np.where((a == 0) | (b == 0), 0, a * b)


def _entropy(side: Side) -> Bounded:
    terms = -_times(side.p, side.log)
    h = terms.sum(1)
    by_z = np.abs(_times(side.p, side.log + h[:, None]))
    return Bounded(h, _times(by_z, side.error).sum(1) + 128 * U * (np.abs(h) + 1))


# --- the divergences ---


def _kl(a: np.ndarray, log_a: np.ndarray, log_b: np.ndarray) -> np.ndarray:
    return _times(a, np.where(a == 0, 0, log_a - log_b)).sum(1)


def _divergence(case: Case, s: Side, t: Side) -> Row:
    name = case.option("divergence", "forward_kl")
    p, q, log_p, log_q = t.p, s.p, t.log, s.log
    nan = np.isnan(p).any(1) | np.isnan(q).any(1)
    rel_p, rel_q = t.relative(), s.relative()
    if name == "forward_kl":
        value = _kl(p, log_p, log_q)
        by_s = q - p
        by_t = _times(p, np.where(p == 0, 0, log_p - log_q - value[:, None]))
        error = _times(q, rel_q) + _times(p, rel_p)
    elif name == "reverse_kl":
        value = _kl(q, log_q, log_p)
        r = np.where(q == 0, 0, log_q - log_p)
        by_s = _times(q, r - value[:, None])
        by_t = p - q
        d_value = _value_error(s, t, by_s, by_t, value)
        error = np.abs(by_s) * rel_q + _times(q, rel_q + rel_p + d_value[:, None] + 18 * U * (np.abs(r) + value[:, None]))
    else:
        beta = case.option("beta", 0.5)
        log_m = np.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        to_p, to_q = _kl(p, log_p, log_m), _kl(q, log_q, log_m)
        value = beta * to_p + (1 - beta) * to_q
        r = np.where(q == 0, 0, log_q - log_m)
        by_s = (1 - beta) * _times(q, r - to_q[:, None])
        by_t = beta * _times(p, np.where(p == 0, 0, log_p - log_m) - to_p[:, None])
        size = rel_q + _times(np.exp(log_p - log_m) * beta, rel_p) + 2 * U * (np.abs(r) + to_q[:, None])
        size = size + _times(q, size).sum(1, keepdims=True)
        error = np.abs(by_s) * rel_q + (1 - beta) * _times(q, size)
    value_error = _value_error(s, t, by_s, by_t, value) + 16 * U * np.abs(value)
    value = np.where(nan, np.nan, value)
    value_error = np.where(np.isfinite(value), value_error, 0)
    # infinity times a probability that float32 rounds to 0
    underflow = ((p == 0) & (q > 0) & (q < UNDERFLOW)) | ((q == 0) & (p > 0) & (p < UNDERFLOW))
    value_error = np.where(np.isinf(value) & underflow.any(1), np.inf, value_error)
    best = t.logits.argmax(1) if t.logits.size else np.zeros(len(value), dtype=np.int64)
    return Row(Bounded(value, value_error + 1e-13), Bounded(by_s, error), _entropy(t), best, t.clear)


def _value_error(s: Side, t: Side, by_s: np.ndarray, by_t: np.ndarray, value: np.ndarray) -> np.ndarray:
    """(N,): the error of the values that follows from the errors of both sides' z / T."""
    error = _times(np.abs(by_s), s.error).sum(1) + _times(np.abs(by_t), t.error).sum(1)
    second_order = _times(s.p, s.error**2).sum(1) + _times(t.p, t.error**2).sum(1)
    return error + second_order


# --- top-k lists and labels ---


def _topk(case: Case, x: Tensors, s: Side) -> Row:
    n, v = s.log.shape
    alpha = 0.0 if case.op == "ce" else case.option("alpha", 1.0)
    kl, gradient, entropy = Bounded(np.zeros(n), np.zeros(n)), Bounded(np.zeros((n, v)), np.zeros((n, v))), None
    best, clear, labels = np.full(n, -2), np.ones(n, dtype=bool), _labels(case, x)
    if case.op != "ce":
        kl, gradient, entropy, best, clear = _topk_kl(case, x, s)
    value, error = alpha * kl.exact if alpha else np.zeros(n), alpha * np.where(np.isfinite(kl.error), kl.error, 0)
    undefined, has_label = ~np.isfinite(kl.error), labels >= 0
    by_z = alpha * gradient.exact if alpha else np.zeros((n, v))
    by_z_error = alpha * gradient.error if alpha else np.zeros((n, v))
    if alpha < 1.0:
        hot = np.zeros((n, v))
        hot[np.flatnonzero(has_label), labels[has_label]] = 1.0
        ce = np.where(has_label, -s.log[np.arange(n), np.maximum(labels, 0)], 0)
        d = np.where(has_label[:, None], s.p - hot, 0)
        value = value + (1 - alpha) * ce
        error = error + (1 - alpha) * (_times(np.abs(d), s.error).sum(1) + 16 * U * np.abs(ce))
        by_z = by_z + (1 - alpha) * d
        by_z_error = by_z_error + np.where(has_label[:, None], (1 - alpha) * (_times(s.p, s.relative()) + 2 * U * hot), 0)
    nan = np.isnan(s.p).any(1)
    value = np.where(nan & (has_label | (case.op != "ce")), np.nan, value)  # a row without a label adds 0
    undefined |= nan & ~has_label & (case.op != "ce")  # the list may be empty
    error = np.where(undefined, np.inf, np.where(np.isfinite(value), error, 0))
    if case.op == "ce":
        entropy, best = Bounded(np.zeros(n), np.zeros(n)), labels
    by_z_error = np.where(undefined[:, None], np.inf, by_z_error)
    return Row(Bounded(value, error + 1e-13), Bounded(by_z, by_z_error), entropy, best, clear)


def _labels(case: Case, x: Tensors) -> np.ndarray:
    """(N,): the column of each row's label, -1 if it has none."""
    if x.target_ids is None:
        return np.full(math.prod(case.shape), -1)
    ids = x.target_ids.numpy().astype(np.int64)
    ids = np.where((ids >= 0) & (ids < case.vocab_size), ids, -1)
    if case.option("shift"):
        moved = np.full_like(ids, -1)
        moved[..., :-1] = ids[..., 1:]
        ids = moved
    return ids.reshape(-1)


def topk_lists(case: Case, x: Tensors) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and ids (N, k) of all rows; rows that are not in `rows` have absent ids."""
    logprobs, ids = flat(x.logprobs), x.ids.reshape(-1, case.k).numpy().astype(np.int64)
    if x.rows is None:
        return logprobs, ids
    all_logprobs, all_ids = (np.full((math.prod(case.shape), case.k), fill) for fill in (0.0, -1))
    all_logprobs[x.rows.numpy()], all_ids[x.rows.numpy()] = logprobs, ids
    return all_logprobs, all_ids


def _topk_kl(case: Case, x: Tensors, s: Side) -> tuple[Bounded, Bounded, Bounded, np.ndarray, np.ndarray]:
    """Value, gradient by z / T, teacher entropy, best column and whether it is certain, of k + 1 outcomes."""
    n, v = s.log.shape
    log_p, listed = np.full((n, v), -np.inf), np.zeros((n, v), dtype=bool)
    logprobs, ids = topk_lists(case, x)
    for i in np.flatnonzero(x.read):
        for column, value in zip(ids[i], logprobs[i]):
            if 0 <= column < v and not listed[i, column]:  # the first entry of a repeated column counts
                listed[i, column], log_p[i, column] = True, value
    p = np.exp(log_p)
    mass = p.sum(1)
    empty = ~listed.any(1)
    undefined = ~empty & (mass == 0)  # every log-probability is -inf
    if case.option("tail", "bucket") == "ignore":
        log_p = np.where(empty[:, None], -np.inf, log_p - np.log(np.where(mass == 0, 1, mass))[:, None])
        p, p_tail = np.exp(log_p), np.where(empty, 1.0, 0.0)
    else:
        p_tail = np.maximum(1.0 - mass, 0.0)
        undefined = undefined & False
    has_tail = ~listed.all(1)
    excess = np.abs(p.sum(1) + p_tail * has_tail - 1)  # the p of rounded log-probabilities need not sum to 1
    q, log_q = s.p, s.log
    q_tail = np.where(listed, 0, q).sum(1)
    in_tail = np.where(listed, 0, q) / np.where(q_tail == 0, 1, q_tail)[:, None]
    terms = _times(p, np.where(p == 0, 0, log_p - log_q))
    tail_term = np.where((p_tail > 0) & has_tail, _times(p_tail, np.log(p_tail) - np.log(q_tail)), 0)
    outcomes = np.where(listed, q, 0).sum(1) + q_tail * has_tail
    # sum p log(p / q) + sum q - sum p: never negative, and the usual sum if the p sum to 1
    value = terms.sum(1) + tail_term + outcomes - p.sum(1) - p_tail * has_tail
    gradient = np.where(listed, q - p, q - p_tail[:, None] * in_tail)
    rel = s.relative()
    tail_error = s.error + _times(in_tail, s.error).sum(1, keepdims=True) + 16 * U
    log_error = U * (8 + np.where(np.isfinite(log_p), np.abs(log_p), 0))
    log_tail_error = U * (8 + np.where(p_tail > 0, np.abs(np.log(p_tail)), 0))
    error = _times(q, rel) + np.where(
        listed, _times(p, log_error), _times(p_tail[:, None] * in_tail, tail_error + log_tail_error[:, None])
    )
    value_error = _times(np.abs(gradient), s.error).sum(1) + 16 * U * np.abs(value)
    value_error += _times(np.abs(terms), log_error).sum(1) + np.abs(tail_term) * log_tail_error + 2e-15
    error = np.where(undefined[:, None], np.inf, error)
    value_error = np.where(undefined, np.inf, value_error)
    h = -(_times(p, log_p).sum(1) + _times(p_tail, np.log(p_tail)))
    best = np.where(empty, -2, np.where(listed, log_p, -np.inf).argmax(1))
    top = np.where(listed, log_p, -np.inf)
    tie = (top == top.max(1, keepdims=True)).sum(1) > 1  # equal numbers stay equal
    clear = (tie | _clear(top, 1e-6)) & ((mass > 0) | empty)
    h_error = U * (32 + 32 * np.abs(h)) + 4 * excess
    h_error = np.where(undefined, np.inf, h_error)
    return Bounded(value, value_error), Bounded(gradient, error), Bounded(h, h_error), best, clear


# --- weights, reductions, gradients ---


def _weights(case: Case, x: Tensors, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the derivative of the final scalar by each row's value, and the weight of each row in the loss."""
    upstream = x.upstream.double().numpy().reshape(-1)
    reduction = case.option("reduction")
    if reduction == "none":
        ones = (kinds != 0).astype(np.float64)
        return ones * upstream, ones
    units = np.ones(len(kinds)) if x.token_weights is None else of_rows(case, x.token_weights).reshape(-1).astype(np.float64)
    units, normalizer = np.where(kinds != 0, units, 0), case.option("normalizer")
    divisors = np.ones(len(kinds))
    if reduction == "mean":
        divisors[:] = units.sum() if normalizer is None else normalizer
    elif reduction == "span_mean":
        sums = [units[kinds == kind].sum() for kind in (1, 2, 3)] if normalizer is None else normalizer
        divisors = np.array([1.0, *sums])[kinds]
    elif reduction == "turn_mean":
        turns = _turns(case, x)
        sums = np.array([units[turns == turn].sum() for turn in range(turns.max(initial=-1) + 1)])
        divisors = sums[turns] * ((sums > 0).sum() if normalizer is None else normalizer) if len(turns) else divisors
    weights = case.lambdas[kinds] * units / np.where(units == 0, 1, divisors)
    return weights * upstream[0], weights


def _turns(case: Case, x: Tensors) -> np.ndarray:
    """(N,): the number of each row's turn."""
    ids = of_rows(case, x.span_ids if x.turn_ids is None else x.turn_ids).astype(np.int64)
    if x.turn_ids is None:
        ids = np.select([(ids == 1) | (ids == 2), (ids == 3) & bool(case.option("lambda_observe"))], [1, 2], 0)
    number, turns = -1, []
    for row in ids.reshape(-1, ids.shape[-1]) if ids.size else ():
        for at, id_ in enumerate(row):
            number += at == 0 or id_ != row[at - 1]
            turns.append(number)
    return np.array(turns, dtype=np.int64)


def _by_logits(case: Case, by_z: Bounded, slope: Bounded, weights: np.ndarray, active: np.ndarray) -> Bounded:
    """The gradient of the first `vocab_size` logits before it is stored."""
    factor = (np.abs(weights) / case.option("temperature", 1.0))[:, None]
    by_logit = _times(slope.exact, by_z.exact)
    by_logit = np.where(np.isfinite(by_logit), by_logit, np.nan)  # also if the upstream gradient is 0
    g = np.where(active[:, None], np.sign(weights)[:, None] * factor * by_logit, 0)
    error = factor * (slope.exact * by_z.error + slope.error * np.abs(by_z.exact)) + 8 * U * np.abs(g)
    error = error + factor * slope.exact * UNDERFLOW + U * np.nan_to_num(np.abs(g), nan=0).max(1, initial=0, keepdims=True)
    return Bounded(g, np.where(active[:, None], error, 0))


def _stored(case: Case, g: Bounded, roundings: float = 2.0) -> Bounded:
    """The gradient in the dtype of the student: rounded when it is stored and when it is multiplied."""
    name = case.dtypes[0]
    return Bounded(g.exact, g.error + roundings * ROUNDING[name] * np.abs(g.exact) + SMALLEST[name])


def _by_inputs(case: Case, x: Tensors, g: Bounded, active: np.ndarray) -> dict[str, Bounded]:
    if not case.linear:
        pad = ((0, 0), (0, case.columns[0] - case.vocab_size))
        stored = _stored(case, g)
        return {"student": Bounded(np.pad(stored.exact, pad), np.pad(stored.error, pad))}
    hidden, weight = flat(x.student), flat(x.weight)[: case.vocab_size]
    hidden = np.where(active[:, None], hidden, 0.0)
    name = case.dtypes[0]
    error = g.error + ROUNDING[name] * np.abs(g.exact)
    if name == "float16":  # the weights are scaled so that the largest is about 1024
        error = error + np.where(active[:, None], SMALLEST[name] / 512 * _largest_weight(case, x), 0)
    size, pad = np.abs(g.exact) + error, case.columns[0] - case.vocab_size
    products = {
        "student": (g.exact @ weight, error @ np.abs(weight) + 16 * U * size @ np.abs(weight)),
        "weight": (g.exact.T @ hidden, error.T @ np.abs(hidden) + (16 * U + _product(name)) * size.T @ np.abs(hidden)),
        "bias": (g.exact.sum(0), error.sum(0) + 16 * U * size.sum(0)),
    }
    results = {}
    for key, want in zip(products, case.wants):
        if want and (key != "bias" or x.bias is not None):
            exact, bound = products[key]
            if key != "student":
                grow = ((0, pad),) + ((0, 0),) * (exact.ndim - 1)
                exact, bound = np.pad(exact, grow), np.pad(bound, grow)
            results[key] = _stored(case, Bounded(exact, bound), 3.0 if name != "float32" else 2.0)
    return results


def _product(name: str) -> float:
    """The rounding of one chunk's product: a CPU has no bfloat16 product with a float32 result."""
    return ROUNDING[name] if name == "bfloat16" else 0.0


def _largest_weight(case: Case, x: Tensors) -> float:
    kinds = kinds_of_rows(case, x.span_ids, x.token_weights)
    return float(np.abs(_weights(case, x, kinds)[0]).max(initial=0.0)) + 1e-30


def _agree(best: tuple[np.ndarray, np.ndarray], clear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) 0 or 1: whether the best columns agree for certain, and whether they may; `clear` is False after rounding."""
    agree = best[0] == best[1]
    return (agree & clear).astype(np.int64), (agree | ~clear).astype(np.int64)


def _clear(x: np.ndarray, error: float | np.ndarray) -> np.ndarray:
    """(N,) bool: whether an error of each number leaves the largest number of the row where it is."""
    number = ~np.isnan(x).any(1)
    if x.shape[1] < 2 or not np.any(error):
        return number
    largest = np.partition(x, -2, axis=1)[:, -2:]
    gap = largest[:, 1] - largest[:, 0]
    return number & ~(gap <= 4 * np.broadcast_to(error, x.shape).max(1))
