"""Faults that are known and not fixed yet. Each entry says what it leaves out and why; delete it together with the fault.

The list is empty if all are fixed.
"""

from __future__ import annotations

from tests.fuzz.cases import Case

GPU = ("triton", "cuda")


def excluded(case: Case, backend: str) -> str | None:
    """The fault that this case meets on this backend, or None. The tensors are not needed."""
    if backend not in GPU:
        return None
    if case.magnitude == "huge":
        return "3: a log-sum-exp of huge logits is NaN"
    beta = case.option("beta", 0.5)
    if case.option("divergence") == "jsd" and min(beta, 1 - beta) < 0.01:
        return "8: jsd near the ends of beta"
    return None


def lse_in_float32(case: Case, backend: str) -> bool:
    """9: Whether the backend rounds the log-sum-exps to float32, which loses digits of logits far from 0."""
    if backend not in GPU:
        return False
    scale = max(x or 1.0 for x in case.per_side("logit_scale")) / case.option("temperature", 1.0)
    large = case.magnitude in ("offset", "wide", "huge") or scale > 1
    kept = case.option("reduction") == "none" or case.dtypes[0] == "float16" or case.op in ("topk", "ce", "linear_topk")
    return large and kept


def inexact_single_column(case: Case, backend: str) -> bool:
    """10: Whether the gradient of a vocabulary of one column may be 6e-8 instead of 0."""
    return case.vocab_size == 1 and backend in GPU
