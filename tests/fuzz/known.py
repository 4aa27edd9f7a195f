"""Faults that are known and not fixed yet. Each entry says what it leaves out and why; delete it together with the fault.

The list is empty if all are fixed.
"""

from __future__ import annotations

from tests.fuzz.cases import Case

GPU = ("triton", "cuda")


def excluded(case: Case, backend: str) -> str | None:
    """The fault that this case meets on this backend, or None. The tensors are not needed."""
    logits = not case.linear
    if logits and backend in GPU and any(any(x.expanded) for x in case.layouts):
        return "1: expanded leading dimensions give misaligned accesses"
    if logits and case.option("shift") and case.shape[-1] == 0:
        return "2: shift with 0 tokens"
    if logits and len(case.shape) == 3 and 0 in case.shape:
        return "10: an empty tensor with four strided dimensions"
    if case.magnitude == "huge" and backend != "reference":
        return "3: a log-sum-exp beyond 2**31 collapses; on cuda and triton it is NaN"
    if case.linear and case.dtypes[0] == "float16":
        scale, temperature = case.per_side("logit_scale")[0] or 1.0, case.option("temperature", 1.0)
        if scale / temperature > 1.2 or case.option("divergence") == "reverse_kl":
            return "4: the float16 gradient of a chunk overflows"
    weightless = 0.0 in (case.option("lambda_reason"), case.option("lambda_act"))
    if case.linear and case.poison and (case.rows == "all" or (case.rows == "supervised" and weightless)):
        return "5: NaN of rows without weight that `rows` names reaches the gradient of the head"
    if case.option("divergence") == "jsd" and min(case.option("beta", 0.5), 1 - case.option("beta", 0.5)) < 0.01:
        return "8: jsd near the ends of beta"
    return None


def lse_in_float32(case: Case, backend: str) -> bool:
    """9: Whether the backend rounds the log-sum-exps to float32, which loses digits of logits far from 0."""
    if backend == "reference":  # its float32 arithmetic is that of PyTorch, with z - logsumexp(z)
        return True
    scale = max(x or 1.0 for x in case.per_side("logit_scale")) / case.option("temperature", 1.0)
    large = case.magnitude in ("offset", "wide", "huge") or scale > 1
    kept = case.option("reduction") == "none" or case.dtypes[0] == "float16" or case.op in ("topk", "ce", "linear_topk")
    return large and (kept or backend == "cpu-portable")


def inexact_single_column(case: Case, backend: str) -> bool:
    """10: Whether the gradient of a vocabulary of one column may be 6e-8 instead of 0."""
    return True
