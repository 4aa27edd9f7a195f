"""The oracle of the oracle: 50 digits, and the definitions alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.fuzz import cases, oracle
from tests.fuzz.tensors import build, kinds_of_rows

mpmath = pytest.importorskip("mpmath")
mp = mpmath.mp
SEED = 77


def _softmax(row, scale, cap, temperature):
    """Log-probabilities with 50 digits."""
    z = [x * (scale or 1) for x in row]
    if cap is not None:
        z = [cap * mp.tanh(x / cap) for x in z]
    z = [x / temperature for x in z]
    total = mp.log(mp.fsum(mp.exp(x) for x in z))
    return [x - total for x in z]


def _kl(log_a, log_b):
    return mp.fsum(mp.exp(a) * (a - b) for a, b in zip(log_a, log_b) if a != -mp.inf)


def _value(case, log_q, log_p, entries, label):
    """The value of a row from the log-probabilities of the student."""
    if case.op == "span_kl":
        name = case.option("divergence", "forward_kl")
        if name == "forward_kl":
            return _kl(log_p, log_q)
        if name == "reverse_kl":
            return _kl(log_q, log_p)
        beta = mp.mpf(case.option("beta", 0.5))
        log_m = [mp.log(beta * mp.exp(p) + (1 - beta) * mp.exp(q)) for p, q in zip(log_p, log_q)]
        return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)
    alpha = mp.mpf(0 if case.op == "ce" else case.option("alpha", 1.0))
    value = (1 - alpha) * (-log_q[label]) if label >= 0 else mp.mpf(0)
    if case.op == "ce" or alpha == 0 or not entries:
        return value
    mass = mp.fsum(mp.exp(mp.mpf(x)) for x in entries.values())
    bucket = case.option("tail", "bucket") == "bucket"
    log_p = {i: mp.mpf(x) - (0 if bucket else mp.log(mass)) for i, x in entries.items()}
    kl = mp.fsum(mp.exp(p) * (p - log_q[i]) for i, p in log_p.items() if p != -mp.inf)
    left = max(1 - mass, mp.mpf(0)) if bucket else mp.mpf(0)
    others = [mp.exp(q) for i, q in enumerate(log_q) if i not in log_p]
    total = mp.fsum(mp.exp(p) for p in log_p.values()) + (left if others else 0)
    if left > 0 and others:
        kl += left * (mp.log(left) - mp.log(mp.fsum(others)))
    return value + alpha * (kl + 1 - total)


def _entries(case, x, row):
    """Column -> log-probability of the valid entries of a row."""
    if x.logprobs is None:
        return {}
    found = {}
    for column, value in zip(*(part[row] for part in oracle.topk_lists(case, x)[::-1])):
        if 0 <= column < case.vocab_size:
            found.setdefault(int(column), float(value))
    return found


def _side(case, x, side, row):
    """The logits of a row as mpmath numbers, scale and cap; None without logits."""
    tensor = (x.student, x.teacher)[side]
    if tensor is None:
        return None
    logits = [mp.mpf(float(n)) for n in oracle.flat(tensor)[row][: case.vocab_size]]
    return logits, case.per_side("logit_scale")[side], case.per_side("logit_softcap")[side]


def _suitable():
    """Cases of few columns on logits, whose values are finite."""
    for index in range(500):
        case = cases.draw(SEED, index, tiny=True)
        if not case.linear and case.magnitude in ("normal", "peaked", "near", "equal", "flat", "offset", "tiny"):
            yield case


def test_values_and_gradients_with_50_digits():
    checked = 0
    with mpmath.workdps(50):
        for case in _suitable():
            x, v = build(case), case.vocab_size
            exact = oracle.truth(case, x)
            kinds = kinds_of_rows(case, x.span_ids, x.token_weights)
            rows = [i for i in np.flatnonzero(kinds) if np.isfinite(exact.values.exact[i]) and x.read[i]]
            labels = oracle._labels(case, x)
            if not rows or v > 40 or checked >= 120:
                continue
            i = int(rows[0])
            sides = [_side(case, x, side, i) for side in (0, 1)]
            temperature = mp.mpf(case.option("temperature", 1.0))
            log_p = _softmax(*sides[1], temperature) if case.op == "span_kl" else None
            entries = _entries(case, x, i)
            if entries and all(e == -math.inf for e in entries.values()):
                continue

            def value(row, case=case, sides=sides, t=temperature, log_p=log_p, entries=entries, label=int(labels[i])):
                return _value(case, _softmax(row, *sides[0][1:], t), log_p, entries, label)

            want = value(sides[0][0])
            assert abs(want - exact.values.exact[i]) <= 1e-13 + 1e-12 * abs(want), case
            weight, scale = oracle._weights(case, x, kinds)[0][i], max(1.0, sides[0][1] or 1.0)
            excess = sum(map(math.exp, entries.values())) - 1  # above 0 the documented gradient q - p is that of other p
            excess = abs(excess) if len(entries) == v else max(excess, 0.0)
            for column in {0, v // 2, v - 1}:
                step = mp.mpf(10) ** -20
                up, down = list(sides[0][0]), list(sides[0][0])
                up[column] += step
                down[column] -= step
                slope = (value(up) - value(down)) / (2 * step) * weight
                got = exact.gradients["student"].exact[i, column]
                assert abs(slope - got) <= (4e-11 + 4 * excess) * max(1, abs(weight)) * scale / temperature, (case, column)
            checked += 1
    assert checked >= 100


def test_plain_pytorch_in_float32_is_within_the_tolerances():
    """Gradients of the forward KL in float32 arithmetic. So no tolerance asks for more than PyTorch's own digits."""
    seen = 0
    for index in range(400):
        case = cases.draw(SEED, index)
        if case.op != "span_kl" or case.option("divergence") or case.option("logit_softcap") or case.magnitude == "huge":
            continue
        x, scales = build(case), [scale or 1.0 for scale in case.per_side("logit_scale")]
        exact = oracle.truth(case, x)
        active = torch.from_numpy(~exact.zero)
        rows = [t.float().reshape(-1, t.shape[-1])[active][:, : case.vocab_size] for t in (x.student, x.teacher)]
        leaf, teacher = rows[0].clone().requires_grad_(), rows[1]
        log_q, log_p = ((z * s / case.option("temperature", 1.0)).log_softmax(-1) for z, s in zip((leaf, teacher), scales))
        kinds = kinds_of_rows(case, x.span_ids, x.token_weights)
        weights = torch.from_numpy(oracle._weights(case, x, kinds)[0])[active].float()
        terms = torch.where(log_p == -torch.inf, 0, -log_p.exp() * log_q)  # the part that depends on the student
        (weights * terms.sum(-1)).sum().backward()
        bounds = exact.gradients["student"]
        want, error = (torch.from_numpy(part)[active][:, : case.vocab_size] for part in bounds)
        fine = ~want.isfinite() | ((leaf.grad.double() - want).abs() <= error) | (log_q.detach() == -torch.inf)
        assert fine.all(), case
        seen += 1
    assert seen >= 30


def test_tolerances_are_small():
    """For float32 logits of common size: 1e-5 of the probabilities and of the value; less than peers allow."""
    seen = 0
    for index in range(600):
        case = cases.draw(SEED, index)
        if case.linear or case.dtypes[0] != "float32" or case.magnitude not in ("normal", "peaked", "near"):
            continue
        if case.option("logit_scale") or case.option("logit_softcap") or case.option("temperature", 1.0) != 1.0:
            continue
        x = build(case)
        exact = oracle.truth(case, x)
        weights = np.abs(oracle._weights(case, x, kinds_of_rows(case, x.span_ids, x.token_weights))[0])
        size = 1.0 if case.option("divergence") != "reverse_kl" else 20.0
        error = exact.gradients["student"].error
        assert (error <= 1e-5 * size * weights[:, None] + 1e-37 + 3e-7 * np.abs(exact.gradients["student"].exact)).all(), (
            case
        )
        values = exact.values
        assert (values.error <= 1e-5 * np.maximum(values.exact, 0.3)).all(), case
        seen += 1
    assert seen >= 20
