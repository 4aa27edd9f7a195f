"""The benchmark's cases: tables of sizes for a quick run, a CPU and a GPU."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch

SPAN_KL, LINEAR = "span_kl", "linear_span_kl"
TOPK, LINEAR_TOPK = "topk_span_kl", "linear_topk_span_kl"
_TOPK_BYTES = 12  # of one top-k entry: a float32 log-probability and an int64 column


class Case(NamedTuple):
    """One problem size: N rows of V logits, of which a fraction is supervised.

    Attributes:
        rows: N.
        vocab: V, the same for student and teacher.
        dtype: Name of the dtype of all floating-point inputs.
        supervised: Fraction of the rows that contribute to the loss.
        hidden: (H_s, H_t), the hidden sizes if the inputs are hidden states. None if the inputs are logits.
        k: Number of teacher log-probabilities per row. 0 if the teacher's full distribution is known.
    """

    rows: int
    vocab: int
    dtype: str
    supervised: float
    hidden: tuple[int, int] | None = None
    k: int = 0

    @property
    def op(self) -> str:
        """The op that the case measures, one of the four names at the top of this file."""
        from_logits, from_hidden = (TOPK, LINEAR_TOPK) if self.k else (SPAN_KL, LINEAR)
        return from_logits if self.hidden is None else from_hidden

    @property
    def name(self) -> str:
        """The sizes as text, such as "1024 x 50257 float32, 67 % supervised"."""
        sizes = f"{self.rows} x {self.vocab} {self.dtype}"
        if self.hidden is not None:
            student, teacher = self.hidden
            sizes += f", H {student}" if self.k else f", H {student} and {teacher}"
        if self.k:
            sizes += f", k {self.k}"
        return f"{sizes}, {100 * self.supervised:.0f} % supervised"

    @property
    def supervised_rows(self) -> int:
        """The number of supervised rows."""
        return round(self.rows * self.supervised)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return getattr(torch, self.dtype)

    @property
    def logits_bytes(self) -> int:
        """Bytes of one (N, V) tensor."""
        return self.rows * self.vocab * self.torch_dtype.itemsize

    @property
    def input_bytes(self) -> int:
        """Bytes of all inputs, including the copy that restores the logits after in-place work."""
        topk = _TOPK_BYTES * self.rows * self.k
        if self.hidden is None:
            return (2 if self.k else 3) * self.logits_bytes + topk
        widths = self.hidden[0] if self.k else sum(self.hidden)
        return (self.rows + self.vocab) * widths * self.torch_dtype.itemsize + topk

    @property
    def moved_bytes(self) -> int | None:
        """The least bytes that forward and backward must move. None for hidden states, where arithmetic is the limit.

        With e bytes per element, a supervised row moves 3 V e: it reads student and teacher and writes the gradient. With a
        top-k teacher it moves 2 V e and the k entries. An unsupervised row moves V e: the zeros of its gradient. In-place
        work writes these zeros too, over the logits.
        """
        if self.hidden is not None:
            return None
        row = self.vocab * self.torch_dtype.itemsize
        supervised_row = 2 * row + _TOPK_BYTES * self.k if self.k else 3 * row
        return supervised_row * self.supervised_rows + row * (self.rows - self.supervised_rows)


def parse_case(text: str) -> Case:
    """Reads a case such as "8192,50257,bf16,0.5", "8192,50257,bf16,0.5,h=768:1600" or "8192,50257,bf16,0.5,k=64".

    The fields are rows, vocabulary columns, dtype (fp32, bf16, fp16), supervised fraction, and optionally the hidden sizes
    of student and teacher and the top-k columns.

    Raises:
        ValueError: The text is not such a case.
    """
    expected = f"expected ROWS,VOCAB,DTYPE,SUPERVISED[,h=STUDENT:TEACHER][,k=K] such as 8192,50257,bf16,0.5, got {text!r}"
    fields = text.split(",")
    sizes, options = fields[:4], dict(field.partition("=")[::2] for field in fields[4:])
    if len(sizes) < 4 or not set(options) <= {"h", "k"}:
        raise ValueError(expected)
    try:
        hidden = tuple(int(size) for size in options["h"].split(":")) if "h" in options else None
        case = _case(int(sizes[0]), int(sizes[1]), sizes[2], float(sizes[3]), hidden, int(options.get("k", 0)))
    except (ValueError, KeyError):
        raise ValueError(expected) from None
    sizes_fit = min(case.rows, *(hidden or (1, 1))) >= 1 and case.vocab >= 2 and 0 <= case.k <= case.vocab
    if not sizes_fit or len(hidden or (1, 1)) != 2:
        raise ValueError(expected)
    if not 0 < case.supervised <= 1 or not case.supervised_rows:
        raise ValueError(f"expected a supervised fraction of at most 1 that is at least one row, got {text!r}")
    return case


def _case(rows: int, vocab: int, dtype: str, supervised: float, hidden: tuple[int, int] | None = None, k: int = 0) -> Case:
    dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[dtype]
    return Case(rows, vocab, dtype, supervised, hidden, k)


# fmt: off
#           N      V       dtype   supervised  H_s, H_t
QUICK = [
    _case(   64,  50257, "fp32", 2 / 3),
    _case(    2, 151936, "fp32", 1.0),               # few long rows: several threads or thread blocks share a row
    _case(   64,  32000, "fp32", 0.2, (128, 256)),
]
CPU = [
    _case( 1024,  50257, "fp32", 2 / 3),             # the headline case; V is odd, so most rows are not aligned
    _case( 1024,  50257, "fp32", 0.2),               # most tokens of an agent trajectory are unsupervised
    _case( 1024,  50257, "bf16", 2 / 3),
    _case( 1024,  50257, "fp16", 2 / 3),
    _case(  512, 151936, "fp32", 2 / 3),             # Qwen's vocabulary
    _case(    2, 151936, "fp32", 1.0),
    _case( 1024,  50257, "fp32", 2 / 3, (768, 1600)),  # student GPT-2 small, teacher GPT-2 XL
    _case( 1024,  50257, "fp32", 0.2, (768, 1600)),
]
GPU = [
    _case( 8192, 151936, "bf16", 0.2),
    _case( 8192, 151936, "bf16", 1.0),
    _case( 8192, 128256, "bf16", 0.5),               # Llama 3
    _case( 8192,  50257, "bf16", 2 / 3),
    _case( 8192,  50257, "fp32", 2 / 3),
    _case( 8192, 151936, "fp32", 0.5),
    _case( 8192, 262144, "bf16", 0.5),               # Gemma 3
    _case(16384,  32000, "bf16", 0.5),               # Llama 2
    _case( 8192,  50257, "fp16", 2 / 3),
    _case(   16, 151936, "bf16", 1.0),               # fewer rows than the GPU has multiprocessors
    _case( 8192, 151936, "bf16", 0.2, (896, 3584)),  # student Qwen2.5 0.5B, teacher Qwen2.5 7B
    _case( 8192, 151936, "bf16", 1.0, (896, 3584)),
    _case( 8192, 128256, "bf16", 0.5, (4096, 4096)),  # both sides of the size of Llama 3 8B
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
    _case( 1024,  50257, "fp32", 2 / 3, None, 1024),  # k large enough to cost time
    _case( 1024,  50257, "fp32", 2 / 3, (768, 1600), 64),
    _case( 1024,  50257, "fp32", 0.2, (768, 1600), 64),
]
TOPK_GPU = [
    _case( 8192, 151936, "bf16", 0.2, None, 64),
    _case( 8192, 151936, "bf16", 1.0, None, 64),
    _case( 8192,  50257, "bf16", 2 / 3, None, 64),
    _case( 8192,  50257, "fp32", 2 / 3, None, 64),
    _case( 8192, 262144, "bf16", 0.5, None, 64),
    _case( 8192, 151936, "bf16", 1.0, None, 1024),
    _case( 8192, 151936, "bf16", 0.2, (896, 3584), 64),
    _case( 8192, 151936, "bf16", 1.0, (896, 3584), 64),
]
# fmt: on
SWEEP = {
    "vocab": (32000, 50257, 128256, 151936, 262144),
    "rows": (512, 2048, 8192, 16384),
    "supervised": (1.0, 0.5, 0.2, 0.05),
    "dtype": ("float32", "bfloat16"),
}
SIZES = ("quick", "default", "full")


def choose_cases(size: str, device_type: str, dtype: str | None = None, topk: bool = False) -> list[Case]:
    """Returns the cases of a size.

    Args:
        size: "quick", "default" (depends on the device), or "full" (the default cases and the sweep).
        device_type: "cpu" or "cuda".
        dtype: Name of a dtype for all cases. Cases that become equal are measured once. Default: each case's own dtype.
        topk: Whether the teacher is known by k columns per row. There is no sweep for these: "full" equals "default".
    """
    quick, cpu, gpu = (TOPK_QUICK, TOPK_CPU, TOPK_GPU) if topk else (QUICK, CPU, GPU)
    cases = quick if size == "quick" else gpu if device_type == "cuda" else cpu
    if size == "full" and not topk:
        # The fraction is the innermost axis because torch.compile keeps its kernels while only the fraction changes.
        axes = [SWEEP[axis] for axis in ("dtype", "vocab", "rows", "supervised")]
        cases = [*cases, *(Case(rows, vocab, kind, fraction) for kind, vocab, rows, fraction in product(*axes))]
    if dtype is not None:
        cases = [case._replace(dtype=dtype) for case in cases]
    return list(dict.fromkeys(cases))
