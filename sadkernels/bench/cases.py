"""What is measured: the sizes, as tables to read."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch

SPAN_KL, LINEAR = "span_kl", "linear_span_kl"
TOPK, LINEAR_TOPK = "topk_span_kl", "linear_topk_span_kl"


class Case(NamedTuple):
    """N rows of V logits of which a fraction is supervised; with `hidden`, the way to them from hidden states as well.

    Attributes:
        rows: N.
        vocab: V, of both sides.
        dtype: Name of the dtype of all floating-point inputs.
        supervised: Fraction of the rows that carry loss.
        hidden: (H_s, H_t), the widths of the hidden states; None where logits are given.
        listed: k, how many of the teacher's columns are known; 0 for all of them, from its logits or hidden states.
    """

    rows: int
    vocab: int
    dtype: str
    supervised: float
    hidden: tuple[int, int] | None = None
    listed: int = 0

    @property
    def op(self) -> str:
        from_logits, from_hidden = (TOPK, LINEAR_TOPK) if self.listed else (SPAN_KL, LINEAR)
        return from_logits if self.hidden is None else from_hidden

    @property
    def name(self) -> str:
        sizes = f"{self.rows} x {self.vocab} {self.dtype}"
        if self.hidden is not None:
            student, teacher = self.hidden
            sizes += f", H {student}" if self.listed else f", H {student} and {teacher}"
        if self.listed:
            sizes += f", k {self.listed}"
        return f"{sizes}, {100 * self.supervised:.0f} % supervised"

    @property
    def supervised_rows(self) -> int:
        return round(self.rows * self.supervised)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def logits_bytes(self) -> int:
        """Size of one (N, V) tensor."""
        return self.rows * self.vocab * self.torch_dtype.itemsize

    @property
    def input_bytes(self) -> int:
        """Size of all inputs, the copy that restores the logits after work in place included."""
        lists = 12 * self.rows * self.listed
        if self.hidden is None:
            return (2 if self.listed else 3) * self.logits_bytes + lists
        widths = self.hidden[0] if self.listed else sum(self.hidden)
        return (self.rows + self.vocab) * widths * self.torch_dtype.itemsize + lists


def _case(
    rows: int, vocab: int, dtype: str, supervised: float, hidden: tuple[int, int] | None = None, listed: int = 0
) -> Case:
    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[dtype]
    return Case(rows, vocab, dtype, supervised, hidden, listed)


# fmt: off
#           N      V       dtype   supervised  H_s, H_t
QUICK = [
    _case(   64,  50257, "fp32", 2 / 3),
    _case(    2, 151936, "fp32", 1.0),               # few long rows: several threads or blocks share a row
    _case(   64,  32000, "fp32", 0.2, (128, 256)),
]
CPU = [
    _case( 1024,  50257, "fp32", 2 / 3),             # the headline: GPT-2's vocabulary, whose rows start at odd addresses
    _case( 1024,  50257, "fp32", 0.2),               # most tokens of an agent trajectory carry no loss
    _case( 1024,  50257, "bf16", 2 / 3),
    _case( 1024,  50257, "fp16", 2 / 3),
    _case(  512, 151936, "fp32", 2 / 3),             # Qwen's vocabulary
    _case(    2, 151936, "fp32", 1.0),
    _case( 1024,  50257, "fp32", 2 / 3, (768, 1600)),  # GPT-2 small taught by GPT-2 XL
    _case( 1024,  50257, "fp32", 0.2, (768, 1600)),
]
GPU = [
    _case( 4096, 151936, "bf16", 0.2),
    _case( 4096, 151936, "bf16", 1.0),
    _case( 4096, 128256, "bf16", 0.5),               # Llama 3
    _case( 4096,  50257, "bf16", 2 / 3),
    _case( 4096,  50257, "fp32", 2 / 3),
    _case( 4096, 151936, "fp32", 0.5),
    _case( 4096, 262144, "bf16", 0.5),               # Gemma 3
    _case(16384,  32000, "bf16", 0.5),               # Llama 2
    _case( 4096,  50257, "fp16", 2 / 3),
    _case(   16, 151936, "bf16", 1.0),               # fewer rows than the card has multiprocessors
    _case( 4096, 151936, "bf16", 0.2, (896, 3584)),  # Qwen2.5 0.5B taught by 7B
    _case( 4096, 151936, "bf16", 1.0, (896, 3584)),
]
#           N      V       dtype   supervised  H_s, H_t  k
TOPK_QUICK = [
    _case(   64,  50257, "fp32", 2 / 3, None, 64),
    _case(   64,  32000, "fp32", 0.2, (128, 256), 64),
]
TOPK_CPU = [
    _case( 1024,  50257, "fp32", 2 / 3, None, 64),
    _case( 1024,  50257, "fp32", 0.2, None, 64),
    _case( 1024,  50257, "bf16", 2 / 3, None, 64),
    _case(  512, 151936, "fp32", 2 / 3, None, 64),
    _case( 1024,  50257, "fp32", 2 / 3, None, 1024),  # lists so long that they cost something
    _case( 1024,  50257, "fp32", 2 / 3, (768, 1600), 64),
    _case( 1024,  50257, "fp32", 0.2, (768, 1600), 64),
]
TOPK_GPU = [
    _case( 4096, 151936, "bf16", 0.2, None, 64),
    _case( 4096, 151936, "bf16", 1.0, None, 64),
    _case( 4096,  50257, "bf16", 2 / 3, None, 64),
    _case( 4096,  50257, "fp32", 2 / 3, None, 64),
    _case( 4096, 262144, "bf16", 0.5, None, 64),
    _case( 4096, 151936, "bf16", 1.0, None, 1024),
    _case( 4096, 151936, "bf16", 0.2, (896, 3584), 64),
    _case( 4096, 151936, "bf16", 1.0, (896, 3584), 64),
]
# fmt: on
SWEEP = {
    "vocab": (32000, 50257, 128256, 151936, 262144),
    "rows": (512, 2048, 8192, 16384),
    "supervised": (1.0, 0.5, 0.2, 0.05),
    "dtype": ("float32", "bfloat16"),
}
SIZES = ("quick", "default", "full")


def choose(size: str, device_type: str, dtype: str | None = None, listed: bool = False) -> list[Case]:
    """The cases of a size: "quick", "default" (of the device), or "full" (the default ones, then the sweep).

    Args:
        size: One of `SIZES`.
        device_type: "cpu" or "cuda".
        dtype: Name of a dtype that replaces every case's own; cases that become equal are measured once.
        listed: Those in which the teacher is known by k columns a row; "full" then is "default".
    """
    quick, cpu, gpu = (TOPK_QUICK, TOPK_CPU, TOPK_GPU) if listed else (QUICK, CPU, GPU)
    cases = quick if size == "quick" else gpu if device_type == "cuda" else cpu
    if size == "full" and not listed:
        # Fractions innermost: torch.compile keeps its kernels while only they change.
        axes = [SWEEP[axis] for axis in ("dtype", "vocab", "rows", "supervised")]
        cases = [*cases, *(Case(rows, vocab, kind, fraction) for kind, vocab, rows, fraction in product(*axes))]
    if dtype is not None:
        cases = [case._replace(dtype=dtype) for case in cases]
    return list(dict.fromkeys(cases))
