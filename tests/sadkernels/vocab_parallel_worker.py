"""One of two ranks that share a vocabulary. test_vocab_parallel.py starts it with torchrun's variables and a folder."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import sad
from tests.sadkernels.span_kl_cases import logits

SLICES = ((0, 300), (300, 517))  # columns of rank 0 and of rank 1, of different width
IDS = torch.tensor([0, 1, 2, 1, 0, 2, 2, -100])
CASES = {
    "forward_kl": {},
    "forward_kl in place": {"inplace_backward": True, "temperature": 1.4},
    "reverse_kl": {"divergence": "reverse_kl", "reduction": "none"},
    "jsd": {"divergence": "jsd", "beta": 0.2, "reduction": "span_mean"},
    "softcap": {"logit_softcap": (6.0, None), "logit_scale": 0.8, "divergence": "jsd"},
}
BACKENDS = ("reference", "cpu", "triton", "cuda")


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the whole rows. One row is -inf on all of rank 1, and argmax has ties across the ranks."""
    torch.manual_seed(3)
    student, teacher = logits(8, SLICES[-1][1]), logits(8, SLICES[-1][1])
    student[1, 300:] = teacher[1, 300:] = -math.inf
    student[2, [100, 400]] = 50.0
    teacher[2, 100] = 50.0
    teacher[5, 450], student[5, 450] = 60.0, 60.0
    return student, teacher


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    begin, end = SLICES[dist.get_rank()]
    student, teacher = tensors()
    results = {}
    for backend in BACKENDS:
        for case, options in CASES.items():
            leaf = student[:, begin:end].clone().requires_grad_()
            loss, stats = sad.fused_span_kl(
                leaf * 1.0,
                teacher[:, begin:end],
                IDS,
                process_group=dist.group.WORLD,
                return_stats=True,
                backend=backend,
                **options,
            )
            loss.backward(torch.full_like(loss, -0.6))
            results[backend, case] = (loss.detach(), leaf.grad, [torch.stack([x.double() for x in kind]) for kind in stats])
    torch.save(results, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
