"""Runs a case on a backend and compares everything that the call returns with the oracle."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import sad
from tests.fuzz import oracle
from tests.fuzz.cases import Case
from tests.fuzz.tensors import GUARD, Tensors, build, kinds_of_rows

FUNCTIONS = {
    "span_kl": "fused_span_kl",
    "topk": "fused_topk_span_kl",
    "ce": "fused_span_ce",
    "linear_span_kl": "fused_linear_span_kl",
    "linear_topk": "fused_linear_topk_span_kl",
}
ARGUMENTS = {
    "span_kl": ("student", "teacher", "span_ids"),
    "topk": ("student", "logprobs", "ids", "span_ids"),
    "ce": ("student", "target_ids", "span_ids"),
    "linear_span_kl": ("student", "weight", "teacher", "teacher_weight", "span_ids"),
    "linear_topk": ("student", "weight", "logprobs", "ids", "span_ids"),
}
_KEYWORDS = {"normalizer": "normalizer", "rows": "rows", "bias": "student_bias", "teacher_bias": "teacher_bias"}


class Result(NamedTuple):
    """What a call returned, on the CPU.

    Attributes:
        loss: As returned.
        stats: (2, 5): `SpanStats` as a tensor, or None.
        gradients: By name, as in `oracle.Truth`.
        guard: Whether storage that belongs to no row has changed.
    """

    loss: Tensor
    stats: Tensor | None
    gradients: dict[str, Tensor]
    guard: bool


class InLayout(torch.autograd.Function):
    """A view with given strides and a gradient of its own shape, also if its rows share memory."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, view: Tensor) -> Tensor:
        return view.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.clone(), None


@contextlib.contextmanager
def environment(backend: str, threads: int = 1) -> Iterator[str]:
    """Sets threads, and for "cpu-ISA" the instruction set; gives the name of the backend."""
    name, _, isa = backend.partition("-")
    before, count = os.environ.get("SAD_CPU_ISA"), torch.get_num_threads()
    if isa:
        os.environ["SAD_CPU_ISA"] = isa
    torch.set_num_threads(threads)
    try:
        yield name
    finally:
        torch.set_num_threads(count)
        if isa:
            os.environ.pop("SAD_CPU_ISA")
            if before is not None:
                os.environ["SAD_CPU_ISA"] = before


def keywords(case: Case) -> list[tuple[str, str]]:
    """The keyword arguments that are tensors, and the names of the tensors."""
    found = []
    if case.tensor_normalizer and case.option("normalizer") is not None:
        found.append(("normalizer", "normalizer"))
    found += [(name, name) for name in ("token_weights", "turn_ids") if getattr(case, name)]
    if case.linear and case.rows != "none":
        found.append(("rows", "rows"))
    if case.linear and case.biases[0]:
        found.append(("student_bias", "bias"))
    if case.op == "linear_span_kl":
        found.append(("teacher_bias", "teacher_bias"))
    if case.op in ("topk", "linear_topk") and case.labels:
        found.append(("target_ids", "target_ids"))
    return found


def run(case: Case, x: Tensors, backend: str, *, threads: int, again: str = "", device: str = "cpu") -> Result:
    """Calls the loss once.

    Args:
        case: The case.
        x: Its tensors. They do not change.
        backend: Such as "cuda" or "cpu-avx2".
        threads: The number of threads of PyTorch.
        again: "no grad", "retain graph" (two backwards; the gradients are of the second), or anything else.
        device: The device of the call.
    """
    grad = again != "no grad"
    tensors = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in x._asdict().items()}
    if device == "cpu" or case.option("inplace_backward"):
        tensors["student"] = _copy_of_storage(x.student, device)
    view, leaves = tensors["student"], {}
    if grad:
        wants = case.wants if case.linear else (True, False, False)
        for name, want in zip(("student", "weight", "bias"), wants):
            if want and tensors[name] is not None:
                leaves[name] = tensors[name].detach().clone().requires_grad_()
                tensors[name] = InLayout.apply(leaves[name], view) if name == "student" else leaves[name]
    options = dict(case.options) | {name: tensors[value] for name, value in keywords(case)}
    with environment(backend, threads) as name, torch.set_grad_enabled(grad):
        given = [tensors[argument] for argument in ARGUMENTS[case.op]]
        result = getattr(sad, FUNCTIONS[case.op])(*given, backend=name, **options)
        loss, stats = result if case.option("return_stats") else (result, None)
        if grad:
            if again == "retain graph":
                loss.backward(tensors["upstream"], retain_graph=True)
                for leaf in leaves.values():
                    leaf.grad = None
            loss.backward(tensors["upstream"])
    if stats is not None:
        stats = torch.stack([torch.stack([field.detach().double() for field in kind]) for kind in stats]).cpu()
    gradients = {name: leaf.grad.detach().cpu() for name, leaf in leaves.items()}
    return Result(loss.detach().cpu(), stats, gradients, _guard_changed(case, view))


def _copy_of_storage(x: Tensor, device: str) -> Tensor:
    storage = torch.tensor([], dtype=x.dtype).set_(x.untyped_storage()).to(device, copy=True)
    return storage.as_strided(x.shape, x.stride(), x.storage_offset())


def _guard_changed(case: Case, view: Tensor) -> bool:
    if not case.option("inplace_backward"):
        return False
    storage = torch.tensor([], dtype=view.dtype, device=view.device).set_(view.untyped_storage())
    outside = torch.ones(storage.shape, dtype=torch.bool, device=view.device)
    outside.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(False)
    return not bool((storage[outside] == GUARD).all())


def failures(case: Case, backend: str, x: Tensors | None = None, device: str = "cpu") -> list[str]:
    """What is wrong with the results of a case on a backend; nothing if all is right.

    Args:
        case: The case.
        backend: Such as "cuda" or "cpu-avx2".
        x: The tensors of the case, if the caller has them.
        device: The device of the call.
    """
    x = build(case) if x is None else x
    exact = oracle.truth(case, x)
    try:
        got = run(case, x, backend, threads=case.threads, device=device)
        threads = case.threads
        if case.again == "threads" and backend.startswith("cpu"):
            threads = 4 - case.threads
        again = run(case, x, backend, threads=threads, again=case.again, device=device)
    except Exception as error:
        return [f"raises {type(error).__name__}: {error}"]
    found = [*_compare(case, backend, x, got, exact)]
    if case.again == "no grad" or (case.linear and threads != case.threads):  # matrix products depend on the threads
        found += [f"{case.again}: {text}" for text in _compare(case, backend, x, again, exact)]
    elif not _same_bits(got, again):
        found.append(f"other bits in the second call ({case.again})")
    return found


def _compare(case: Case, backend: str, x: Tensors, got: Result, exact: oracle.Truth) -> Iterator[str]:
    none = case.option("reduction") == "none"
    if got.loss.dtype != torch.float32 or got.loss.shape != (case.shape if none else ()):
        yield f"loss is {got.loss.dtype} {tuple(got.loss.shape)}"
    loss = got.loss.double().numpy().reshape(-1)
    yield from _differences("loss", loss, _flattened(exact.loss), np.zeros(len(loss), dtype=bool))
    if (loss < 0).any():
        yield f"a negative divergence: {loss.min()}"
    if none and (loss[kinds_of_rows(case, x.span_ids, x.token_weights) == 0] != 0).any():
        yield "the loss of a row without a span is not 0"
    for name, bounds in exact.gradients.items():
        if name not in got.gradients:
            continue  # a call without grad
        gradient = got.gradients[name]
        if gradient.dtype != getattr(torch, case.dtypes[0]):
            yield f"the gradient of {name} is {gradient.dtype}"
        gradient = gradient.double().numpy().reshape(bounds.exact.shape)
        must_be_0 = _must_be_0(case, name, exact, gradient.shape)
        if (gradient[must_be_0] != 0).any():
            at = tuple(int(i) for i in np.argwhere(must_be_0 & (gradient != 0))[0])
            yield f"the gradient of {name} at {at} is {gradient[at]}, not exactly 0"
        yield from _differences(f"gradient of {name}", gradient, bounds, must_be_0, oracle.LARGEST[case.dtypes[0]])
    if got.stats is not None:
        yield from _stats(got.stats.numpy(), exact)
    if got.guard:
        yield "the storage between the rows has changed"


def _must_be_0(case: Case, name: str, exact: oracle.Truth, shape: tuple[int, ...]) -> np.ndarray:
    zero = np.zeros(shape, dtype=bool)
    if name == "student":
        zero[exact.zero] = True
        if not case.linear:
            zero[:, case.vocab_size :] = True
            if case.vocab_size == 1:
                zero |= exact.gradients[name].exact == 0.0
    else:
        zero[case.vocab_size :] = True
    return zero


def _flattened(x: oracle.Bounded) -> oracle.Bounded:
    return oracle.Bounded(np.atleast_1d(x.exact), np.atleast_1d(x.error))


def _differences(
    name: str, got: np.ndarray, bounds: oracle.Bounded, skip: np.ndarray, largest: float = 3e38
) -> Iterator[str]:
    exact, error = bounds
    finite = np.isfinite(exact) & (np.abs(exact) < largest) & np.isfinite(error)
    with np.errstate(all="ignore"):
        wrong = finite & ~skip & ~(np.abs(got - exact) <= error)
    if name == "loss":  # a gradient that is not finite has no promised value
        open_ = np.isinf(error)
        wrong |= np.isnan(exact) & ~np.isnan(got) & ~open_
        wrong |= np.isinf(exact) & ~(got == exact) & ~open_
    if wrong.any():
        with np.errstate(all="ignore"):
            ratio = np.where(wrong, np.abs(got - exact) / error, 0)
        at = np.unravel_index(int(np.nanargmax(np.where(np.isnan(ratio), np.inf, ratio))), ratio.shape)
        yield (
            f"{name}: {int(wrong.sum())} of {wrong.size} wrong; at {tuple(int(i) for i in at)} "
            f"got {got[at]:.9g}, want {exact[at]:.9g}, allowed error {error[at]:.2g}"
        )


def _stats(got: np.ndarray, exact: oracle.Truth) -> Iterator[str]:
    """`got` (3, 5): kl_sum, tokens, teacher_entropy_sum, student_entropy_sum, agreements."""
    if not np.array_equal(got[:, 1], exact.counts):
        yield f"tokens are {got[:, 1]}, not {exact.counts}"
    low, high = exact.agreements.T
    if ((got[:, 4] < low) | (got[:, 4] > high)).any():
        yield f"agreements are {got[:, 4]}, not {low} to {high}"
    sums = got[:, [0, 2, 3]]
    with np.errstate(all="ignore"):
        differs = ~(np.abs(sums - exact.sums.exact) <= exact.sums.error)
    wrong = np.isfinite(exact.sums.exact) & differs
    wrong |= ~np.isfinite(exact.sums.exact) & np.isfinite(sums) & np.isfinite(exact.sums.error)
    if wrong.any():
        kind, at = np.argwhere(wrong)[0]
        field = ("kl_sum", "teacher_entropy_sum", "student_entropy_sum")[at]
        want, error = exact.sums.exact[kind, at], exact.sums.error[kind, at]
        name = ("reason", "act", "observe")[kind]
        yield f"{name}.{field} is {sums[kind, at]:.9g}, want {want:.9g}, allowed error {error:.2g}"


def _same_bits(a: Result, b: Result) -> bool:
    pairs = [(a.loss, b.loss), *((g, b.gradients[name]) for name, g in a.gradients.items())]
    if a.stats is not None:
        pairs.append((a.stats, b.stats))
    return all(torch.equal(torch.nan_to_num(x, nan=12345.0), torch.nan_to_num(y, nan=12345.0)) for x, y in pairs)


def snippet(case: Case, backend: str) -> str:
    """A Python program that repeats the call, to run in the checkout."""
    isa = backend.partition("-")[2]
    lines = ["import os, torch, sad"]
    if isa:
        lines.append(f'os.environ["SAD_CPU_ISA"] = "{isa}"')
    if backend == "triton":
        lines[0] = 'import os; os.environ["TRITON_INTERPRET"] = "1"; import torch, sad'
    lines += [
        "from tests.fuzz import cases, check, tensors",
        f"case = cases.draw({case.seed}, {case.index}, tiny={case.tiny})",
        "x = tensors.build(case)",
    ]
    tensors = [*((None, name) for name in ARGUMENTS[case.op]), *keywords(case)]
    at = {"student": "student", "weight": "x.weight", "bias": "x.bias"}
    wants = [name for name, want in zip(at, case.wants if case.linear else (True, False, False)) if want]
    wants = [name for name in wants if name != "bias" or case.biases[0]]
    lines.append("student = x.student")
    for name in wants:
        if name == "student":
            lines += ["leaf = x.student.clone().requires_grad_()", "student = check.InLayout.apply(leaf, x.student)"]
        else:
            lines.append(f"{at[name]}.requires_grad_()")
    arguments = [f"{key + '=' if key else ''}{at.get(name, f'x.{name}')}" for key, name in tensors]
    given = {key for key, _ in tensors}
    arguments += [f"{name}={value!r}" for name, value in case.options if name not in given]
    gradients = ", ".join("leaf.grad" if name == "student" else f"{at[name]}.grad" for name in wants)
    lines += [
        f"torch.set_num_threads({case.threads})",
        f'loss = sad.{FUNCTIONS[case.op]}({", ".join(arguments)}, backend="{backend.partition("-")[0]}")',
        "loss = loss[0] if isinstance(loss, tuple) else loss",
        "loss.backward(x.upstream)",
        f"print(loss, {gradients})",
        f'print(check.failures(case, "{backend}"))  # what differs from the oracle',
    ]
    return "\n".join(lines)
