"""Every backend that runs here on small, awkward cases against float64: for a bare GPU machine and for compute-sanitizer.

    python benchmarks/check_small.py [--device cuda] [--backend triton]

Sizes are those that reach every path of a kernel: odd row starts, rows shorter than a tile, rows that several blocks share,
no row and every row supervised, a gradient in place and in a buffer of its own. A process that touches memory that is not
its own, or reads what nobody wrote, shows under `compute-sanitizer --tool memcheck|racecheck|initcheck`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch

from sadkernels import backends
from sadkernels.ops.span_kl import fused_span_kl

SIZES = ((5, 7), (9, 1000), (3, 50257), (1, 151936))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Case(NamedTuple):
    rows: int
    vocab: int
    dtype: torch.dtype
    divergence: str
    in_place: bool
    supervised: str  # "some", "all" or "none" of the rows


def cases(few: bool) -> Iterator[Case]:
    for (rows, vocab), dtype, in_place, supervised in product(
        SIZES[:2] if few else SIZES, DTYPES, (False, True), ("some", "all", "none")
    ):
        yield Case(rows, vocab, dtype, "forward_kl", in_place, supervised)
    if not few:
        for divergence, dtype, in_place in product(("reverse_kl", "jsd"), DTYPES[:2], (False, True)):
            yield Case(*SIZES[1], dtype, divergence, in_place, "some")


def gap(case: Case, backend: str, device: torch.device) -> float:
    """Largest relative error of loss and gradient, in units of what the dtype allows."""
    rows, vocab, dtype, divergence, in_place, supervised = case
    torch.manual_seed(rows + vocab)
    student, teacher = ((3 * torch.randn(rows, vocab)).to(device, dtype) for _ in range(2))
    ids = torch.full((rows,), 1 if supervised == "all" else 0, device=device)
    if supervised == "some":
        ids[::2] = 2
    results = []
    for backend_, convert in (("reference", torch.Tensor.double), (backend, torch.clone)):
        leaf = convert(student).requires_grad_()
        options = {"divergence": divergence, "backend": backend_, "inplace_backward": in_place and backend_ == backend}
        loss = fused_span_kl(leaf, convert(teacher), ids, **options)
        loss.backward()
        results.append((loss.item(), leaf.grad.double()))
    (loss, gradient), (own_loss, own_gradient) = results
    if supervised == "none":
        return 0.0 if own_loss == 0 and not own_gradient.any() else float("inf")
    scale = gradient.abs().max()
    error = max(abs(own_loss / loss - 1), float((own_gradient - gradient).abs().max() / scale))
    return error / (torch.finfo(dtype).eps + 1e-5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", choices=list(backends.PACKAGES), help="only this one")
    parser.add_argument("--few", action="store_true", help="the small sizes: for tools that slow kernels down")
    parser.add_argument("--absent-is-fine", action="store_true", help="exit code 0 if the backend is not there")
    args = parser.parse_args()
    device, bad, ran = torch.device(args.device), 0, 0
    chosen = list(cases(args.few))
    for backend in [args.backend] if args.backend else [name for name in backends.PACKAGES if name != "reference"]:
        if reason := backends.why_not(backend, "span_kl", device, torch.float32):
            print(f"{backend}: not run, {reason}")
            continue
        for case in chosen:
            ran += 1
            error = gap(case, backend, device)
            if not error <= 2:
                bad += 1
                print(f"{backend}: WRONG, {error:.1f} times what is allowed: {case}")
        print(f"{backend}: done", flush=True)
    print(f"{ran} cases on {device}, {bad} wrong")
    return 1 if bad or not (ran or args.absent_is_fine) else 0


if __name__ == "__main__":
    sys.exit(main())
