"""`sad.fused_span_kl` on the CPU against PyTorch: forward and backward through autograd, in one run.

    python benchmarks/bench_span_kl.py [--rows 1024] [--vocab 50257] [--rounds 9] [--out FILE]

PyTorch computes `kl_div(log_softmax(student), log_softmax(teacher), log_target=True)` on all rows and masks, as plain
implementations do, and `torch (gathered)` does so on the supervised rows alone. Except in place, the timed region ends
with one read of the gradient, on all sides, because a buffer whose pages were never touched is not yet paid for.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from harness import RESULTS, copy_bandwidth, peak_extra_memory, speedups, time_in_turns, write_csv
from torch import Tensor

import sad

BASELINE = "torch"


def torch_masked(student: Tensor, teacher: Tensor, ids: Tensor) -> Tensor:
    log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    per_token = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    mask = ids > 0
    return (per_token * mask).sum() / mask.sum()


def torch_gathered(student: Tensor, teacher: Tensor, ids: Tensor) -> Tensor:
    rows = ids.nonzero().squeeze(-1)
    log_q, log_p = F.log_softmax(student[rows], -1), F.log_softmax(teacher[rows], -1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) / rows.numel()


def fused(student: Tensor, teacher: Tensor, ids: Tensor) -> Tensor:
    return sad.fused_span_kl(student, teacher, ids)


def fused_in_place(student: Tensor, teacher: Tensor, ids: Tensor) -> Tensor:
    return sad.fused_span_kl(student, teacher, ids, inplace_backward=True)


PROVIDERS = {BASELINE: torch_masked, "torch (gathered)": torch_gathered, "sad": fused, "sad, in place": fused_in_place}


def check(rows: int, vocab: int, dtype: torch.dtype, ids: Tensor) -> dict[str, float]:
    """Largest relative error of loss and gradient against float64, on a slice; raises where it is out of bounds."""
    few = ids[: min(rows, 64)]
    student, teacher = (torch.randn(len(few), vocab).mul_(3).to(dtype) for _ in range(2))
    exact = student.double().requires_grad_()
    truth = torch_masked(exact, teacher.double(), few)
    truth.backward()
    errors = {}
    for name, provider in PROVIDERS.items():
        leaf = student.clone().requires_grad_()
        loss = provider(leaf, teacher, few)
        loss.backward()
        gap = (leaf.grad.double() - exact.grad).abs().max() / exact.grad.abs().max()
        errors[name] = max(float(gap), abs(loss.item() / truth.item() - 1))
        if errors[name] > (1e-5 if dtype == torch.float32 else 2e-2):
            raise SystemExit(f"{name} is wrong by {errors[name]:.1e} at V={vocab}, {dtype}: nothing was timed")
    return errors


def measure(rows: int, vocab: int, fraction: float, dtype: torch.dtype, rounds: int, bandwidth: float) -> list[dict]:
    torch.manual_seed(0)
    ids = torch.zeros(rows, dtype=torch.int64)
    supervised = torch.randperm(rows)[: round(rows * fraction)]
    ids[supervised] = 1 + torch.arange(len(supervised)) % 2
    errors = check(rows, vocab, dtype, ids)
    leaf = torch.randn(rows, vocab).mul_(3).to(dtype).requires_grad_()
    teacher = torch.randn(rows, vocab).mul_(3).to(dtype)
    original = leaf.detach().clone()

    def runner(name: str):
        def run() -> None:
            leaf.grad = None
            PROVIDERS[name](leaf, teacher, ids).backward()
            if "in place" not in name:
                leaf.grad.sum()

        return run

    runs = {name: runner(name) for name in PROVIDERS if "in place" not in name}
    seconds = time_in_turns(runs, rounds)
    memory = {}
    for name, run in runs.items():
        leaf.grad = None  # the gradient buffer counts
        memory[name] = peak_extra_memory(run)
    # In place the logits become the gradient: timed in rounds of their own, on logits restored before each.
    in_place = "sad, in place"
    seconds[in_place] = []
    for _ in range(rounds):
        leaf.grad = None
        with torch.no_grad():
            leaf.copy_(original)
        seconds[in_place] += time_in_turns({in_place: runner(in_place)}, rounds=1, warmup=0)[in_place]
    leaf.grad = None
    with torch.no_grad():
        leaf.copy_(original)
    memory[in_place] = peak_extra_memory(runner(in_place))

    size = leaf.element_size() * vocab
    moved = 3 * len(supervised) * size + (rows - len(supervised)) * size  # two reads and a write; zeros elsewhere
    ratio = speedups(seconds, BASELINE)
    return [
        {
            "provider": name,
            "rows": rows,
            "vocab": vocab,
            "dtype": str(dtype).removeprefix("torch."),
            "supervised": fraction,
            "ms": round(1e3 * median(seconds[name]), 2),
            "times_torch": round(ratio[name], 2),
            "peak_extra_mb": round(memory[name] / 2**20, 1),
            "gradient_buffers": round(memory[name] / (rows * size), 2),
            "copy_bandwidth_fraction": round(moved / median(seconds[name]) / bandwidth, 3),
            "error_vs_float64": f"{errors[name]:.1e}",
        }
        for name in PROVIDERS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--supervised", type=float, nargs="+", default=[2 / 3, 0.2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS / "span_kl_cpu.csv")
    args = parser.parse_args()
    bandwidth = copy_bandwidth()
    rows = []
    for fraction in args.supervised:
        rows += measure(args.rows, args.vocab, round(fraction, 4), getattr(torch, args.dtype), args.rounds, bandwidth)
    for row in rows:
        print("  ".join(f"{key}={row[key]}" for key in ("provider", "supervised", "ms", "times_torch", "gradient_buffers")))
    write_csv(args.out, rows)
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s; written to {args.out}")


if __name__ == "__main__":
    main()
