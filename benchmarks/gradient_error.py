"""Measures the error of 16-bit gradients against float64: from logits that the caller rounded, and from hidden states.

    python benchmarks/gradient_error.py [--out FILE]

Student and teacher are random heads at a small distance from each other, as near the end of a training. All operands are
rounded to the dtype first, so the error is that of the loss alone. Errors are norms relative to the gradient's norm, in %.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from harness import RESULTS, write_csv
from torch import Tensor

import sad

ROWS, HIDDEN, VOCABULARY = 64, 256, 32_000
PEAKS, DISTANCES = (1.0, 2.0, 4.0), (0.02, 0.05, 0.15)
LOSS_SCALE = {torch.bfloat16: 1.0, torch.float16: 2.0**16}


def measure(dtype: torch.dtype, peak: float, distance: float, device: torch.device) -> dict[str, object]:
    """Returns one row of the table.

    Args:
        dtype: Dtype of the operands.
        peak: Standard deviation of the logits.
        distance: Standard deviation of the teacher's difference from the student, relative to the student.
        device: Where the losses run.
    """
    torch.manual_seed(0)
    hidden, weight = torch.randn(ROWS, HIDDEN), torch.randn(VOCABULARY, HIDDEN) * peak / HIDDEN**0.5
    operands = (hidden, weight, hidden + distance * torch.randn(ROWS, HIDDEN))
    operands += (weight + distance * torch.randn(VOCABULARY, HIDDEN) / HIDDEN**0.5,)
    h, w, t_h, t_w = (x.to(dtype).to(device) for x in operands)
    ids = torch.ones(ROWS, dtype=torch.long, device=device)

    def gradients(loss: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, scale: float) -> list[Tensor]:
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (h, w)]
        (loss(*leaves) * scale).backward()
        return [x.grad.double() / scale for x in leaves]

    teacher = t_h.double() @ t_w.double().T
    logits = h.double() @ w.double().T
    exact = gradients(lambda h, w: sad.fused_span_kl(h @ w.T, teacher, ids, backend="reference"), torch.float64, 1.0)
    scale = LOSS_SCALE[dtype]
    from_logits = gradients(lambda h, w: sad.fused_span_kl(h @ w.T, t_h @ t_w.T, ids), dtype, scale)
    from_hidden = gradients(lambda h, w: sad.fused_linear_span_kl(h, w, t_h, t_w, ids), dtype, scale)
    row = {
        "dtype": str(dtype).removeprefix("torch."),
        "largest_logit": round(float(logits.abs().max()), 1),
        "kl": round(float(sad.fused_span_kl(logits, teacher, ids, backend="reference")), 4),
    }
    for source, found in (("logits", from_logits), ("hidden_states", from_hidden)):
        for name, x, e in zip(("hidden", "weight"), found, exact):
            row[f"from_{source}_{name}_error_percent"] = round(100 * float((x - e).norm() / e.norm()), 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu, cuda or cuda:N; default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS / "gradient_error_cpu.csv", help="CSV; default: %(default)s")
    args = parser.parse_args()
    rows = [measure(dtype, peak, x, args.device) for dtype in LOSS_SCALE for peak in PEAKS for x in DISTANCES]
    for row in rows:
        print(*row.values())
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
