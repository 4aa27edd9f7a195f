"""One of two ranks with different rows whose head is sharded by FSDP2: `python -m ... FOLDER`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import Partial

import sad

V, H = 21, 8


class Student(nn.Module):
    """A head that computes the loss of its hidden states in its forward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(H, V, bias=True)

    def forward(self, rank: int) -> Tensor:
        return loss(rank, self.head.weight, self.head.bias)


def loss(rank: int, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns the loss of a rank's rows, of which rank 1 has more."""
    rows = 3 + 4 * rank
    generator = torch.Generator().manual_seed(rank)
    hidden, teacher_hidden = torch.randn(2, rows, H, generator=generator)
    teacher = torch.randn(V, H, generator=torch.Generator().manual_seed(9))
    return sad.fused_linear_span_kl(
        hidden, weight, teacher_hidden, teacher, torch.ones(rows, dtype=torch.int), student_bias=bias, reduction="sum"
    )


def gradients(student: nn.Module) -> tuple[Tensor, ...]:
    """Returns the whole gradients of weight and bias, and removes them."""
    found = tuple(x.grad.full_tensor() if hasattr(x.grad, "full_tensor") else x.grad for x in student.parameters())
    student.zero_grad()
    return tuple(x.clone() for x in found)


def main(folder: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    student = fully_shard(Student())
    student(rank).backward()
    inside = gradients(student)
    student.reshard()
    head = student.head
    try:
        loss(rank, head.weight, head.bias)
        message = "nothing was raised"
    except ValueError as error:
        message = str(error)
    with torch.no_grad():
        value = loss(rank, head.weight, head.bias).item()
    averaged = [x.full_tensor(grad_placements=[Partial("avg")]) for x in (head.weight, head.bias)]
    loss(rank, *averaged).backward()
    result = {"inside": inside, "gathered": gradients(student), "message": message, "value": value}
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
