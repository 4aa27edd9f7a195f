"""A language-model head: the logits of hidden states, and the gradients that follow from the gradient of the logits.

Logits are float32 also for 16-bit operands: q - p is a small difference, and logits that are rounded to 16 bits make its
error 10 % and more when student and teacher are close. The gradient is rounded only for the products that carry it back.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from sadkernels.ops import products
from sadkernels.ops.products import is_cpu

_16_BIT = (torch.bfloat16, torch.float16)
_FLOAT16_EXPONENT = 14  # the largest number of a scaled float16 gradient is at most 2^14


class Head(NamedTuple):
    """Hidden states (N, H) and the head that projects them: weight (V, H), bias (V,) or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    def columns(self, count: int) -> Head:
        """The head of the first `count` columns of the vocabulary."""
        return Head(self.hidden, self.weight[:count], None if self.bias is None else self.bias[:count])

    @property
    def logits_dtype(self) -> torch.dtype:
        """float32 for 16-bit operands, else their dtype."""
        return torch.float32 if self.hidden.dtype in _16_BIT else self.hidden.dtype

    def project(self, rows: Tensor, out: Tensor) -> None:
        """Writes the logits of hidden states `rows` (n, H) to `out` (n, V), in `logits_dtype`."""
        width, dtype = len(self.weight), rows.dtype
        if is_cpu(rows):
            width, dtype = products.COLUMNS_AT_ONCE, products.cpu_operand_dtype(dtype)
            if dtype == torch.bfloat16 and rows.shape[1] % 2:
                dtype = torch.float32  # oneDNN multiplies in pairs: it would add 0 times the next row, which may be NaN
        rows = rows.to(dtype)
        biases = itertools.repeat(None) if self.bias is None else self.bias.split(width)
        for logits, weight, bias in zip(out.split(width, dim=1), self.weight.split(width), biases):
            products.write_product(rows, weight.to(dtype).t(), logits)
            if bias is not None:
                logits.add_(bias)


class HeadGradients:
    """The gradients of the student's hidden states (N, H), weight (V, H) and bias (V,), summed over chunks of rows.

    Sums over chunks are float32 for 16-bit weights. With float16 all gradients are float32 until the loss scale is applied.

    Args:
        student: The head with all its columns.
        wants: Whether the gradients of hidden states, weight and bias are needed.
        vocab_size: The columns that have a gradient; the gradient of the others is 0.
        empty: Whether no chunk will be added.
    """

    def __init__(self, student: Head, wants: list[bool], vocab_size: int, empty: bool) -> None:
        self._student, self._vocab_size, self._operand = student.columns(vocab_size), vocab_size, None
        self.hidden = self.weight = self.bias = None
        dtype = student.hidden.dtype
        if wants[0]:
            like = {"dtype": torch.float32 if dtype == torch.float16 else dtype, "memory_format": torch.contiguous_format}
            self.hidden = torch.zeros_like(student.hidden, **like)
        if wants[1]:
            like = {"dtype": student.logits_dtype, "memory_format": torch.contiguous_format}
            self.weight = torch.empty_like(student.weight, **like)  # the first chunk writes the columns in use
            self.weight[0 if empty else vocab_size :].zero_()
        if wants[2] and student.bias is not None:
            self.bias = torch.zeros_like(student.bias, dtype=student.logits_dtype)

    def add(self, rows: Tensor, hidden: Tensor, gradient: Tensor, without_weight: Tensor, *, first: bool) -> None:
        """Adds the gradients of a chunk.

        Args:
            rows: (n,), the rows of the chunk.
            hidden: (n, H), their hidden states, which are overwritten.
            gradient: (n, V), the gradient of their logits.
            without_weight: (n,) bool, rows whose gradient is 0. Their hidden states may be NaN, and 0 * NaN is NaN.
            first: Whether this is the first chunk.
        """
        if self.bias is not None:
            self.bias[: self._vocab_size].add_(gradient.sum(0, dtype=self.bias.dtype))
        if self.hidden is None and self.weight is None:
            return
        operand, unscale = self._as_operand(gradient)
        if self.hidden is not None:
            product = products.product(operand, self._student.weight)
            self.hidden.index_copy_(0, rows, _times(product, unscale).to(self.hidden.dtype))
        if self.weight is None:
            return
        total, hidden = self.weight[: self._vocab_size], hidden.masked_fill_(without_weight[:, None], 0.0).to(operand.dtype)
        if unscale is None:
            products.add_product(operand.t(), hidden, total, first=first)
        else:
            product = _times(products.product(operand.t(), hidden), unscale)
            total.copy_(product) if first else total.add_(product)

    def _as_operand(self, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """A gradient (n, V) of float32 logits in the dtype of the products, and the factor that undoes its scale.

        float16 on a GPU: the gradient is scaled by a power of two, so that it neither overflows nor underflows.
        """
        dtype = self._student.hidden.dtype
        if is_cpu(gradient):
            dtype = products.cpu_operand_dtype(dtype)
        if gradient.dtype == dtype:
            return gradient, None
        if self._operand is None:  # the first chunk is the largest
            self._operand = torch.empty_strided(gradient.shape, gradient.stride(), dtype=dtype, device=gradient.device)
        operand = self._operand[: len(gradient)]
        if dtype == torch.bfloat16:
            return operand.copy_(gradient), None
        largest = gradient.abs().amax()
        exponent = torch.where((largest > 0) & largest.isfinite(), _FLOAT16_EXPONENT - torch.ceil(torch.log2(largest)), 0)
        return operand.copy_(gradient * torch.exp2(exponent)), torch.exp2(-exponent)


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor
