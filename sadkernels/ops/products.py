"""Matrix products of 16-bit operands with float32 results, as each device computes them best.

CUDA has such products. On a CPU PyTorch has none: the operands become float32 in slices, or two bfloat16 products give one
float32 product.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

COLUMNS_AT_ONCE = 512  # of a product on a CPU: MKL computes such slices faster than the whole (docs/benchmarks.md)


def is_cpu(x: Tensor) -> bool:
    """Whether a tensor is on the CPU."""
    return x.device.type == "cpu"


def has_mixed_products(device: torch.device) -> bool:
    """Whether `torch.mm` takes `out_dtype` on this device."""
    return device.type == "cuda"


def cpu_operand_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the operands of a product on a CPU: float32 if the CPU multiplies it faster than a 16-bit `dtype`."""
    slow = dtype == torch.float16 or (dtype == torch.bfloat16 and not has_bfloat16_products())
    return torch.float32 if slow else dtype


@functools.cache
def has_bfloat16_products() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def write_product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a b, where `out` is float32 or has the dtype of a and b."""
    if out.dtype == a.dtype:
        torch.mm(a, b, out=out)
    elif has_mixed_products(a.device):
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        # The product is summed in float32 and rounded once, so a second one gives the rounding error of the first: together
        # they have twice the digits.
        rounded = torch.mm(a, b)
        out.copy_(rounded).add_(torch.addmm(rounded, a, b, beta=-1))


def add_product(a: Tensor, b: Tensor, total: Tensor, *, first: bool) -> None:
    """total += a b, or total = a b if `first`: then `total` is not read. It is float32 or has the dtype of a and b.

    On a CPU the product of 16-bit operands is rounded to 16 bits before it is added.
    """
    if total.dtype == a.dtype:
        total.addmm_(a, b, beta=0 if first else 1)
    elif not has_mixed_products(a.device):
        total.copy_(torch.mm(a, b)) if first else total.add_(torch.mm(a, b))
    elif first:
        torch.mm(a, b, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b, float32 where the device has such products. b may be 16-bit beside a float32 `a`: it is converted in slices."""
    if a.dtype == b.dtype:
        mixed = has_mixed_products(a.device) and a.dtype in (torch.bfloat16, torch.float16)
        return torch.mm(a, b, out_dtype=torch.float32) if mixed else torch.mm(a, b)
    result = a.new_zeros((len(a), b.shape[1]))
    for part, some in zip(a.split(COLUMNS_AT_ONCE, dim=1), b.split(COLUMNS_AT_ONCE)):
        result.addmm_(part, some.to(a.dtype))
    return result
