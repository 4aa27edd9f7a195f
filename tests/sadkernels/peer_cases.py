"""The cases of other projects' loss tests as tables: shapes, dtypes, divergences, temperatures and tolerances.

Only facts are taken from the other projects, no code. Where a project's meaning differs from ours:

* "batchmean" and a mean over tokens are our "mean". Fast-LLM's mean counts masked tokens too: `counts_masked`.
* A row with the label `ignore_index` is a row without a span.
* beta = 0 is our forward_kl and beta = 1 our reverse_kl. A beta between is jsd with the same mixture as ours.
* No project multiplies these losses by T^2, and neither do we.
* Liger differentiates with respect to log-probabilities. We use them as logits, and our gradient includes their softmax.
* Liger's mixed loss is two of our calls: hard weight x CE at T = 1, and soft weight x JSD at T.
* TRL's top-1 loss with a tail is our `tail="bucket"`, which has forward KL only.
* CCE's loss on hidden states is our `fused_linear_topk_span_kl` with alpha = 0. Its shift by 2 tokens has no counterpart.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16


class Case(NamedTuple):
    """A case on logits."""

    shape: tuple[int, ...]  # (..., V)
    dtype: torch.dtype
    beta: float | None  # None: cross-entropy
    atol: float
    rtol: float
    gradient: tuple[float, float] | None = None  # atol and rtol of the gradient, if they differ from the loss's
    temperature: float = 1.0
    ignored: float = 0.0  # share of the rows without a span
    upstream: float = 1.0  # with reduction "none" the upstream gradient is random, and 0 for every third token
    reduction: str = "mean"
    scale: float = 1.0  # standard deviation of the teacher's logits
    distance: float | None = None  # of the student's logits from the teacher's; None: independent
    logit_scale: float = 1.0
    counts_masked: bool = False
    rms: bool = False  # the tolerances are of the root mean square over the tensor


class LinearCase(NamedTuple):
    """A case on hidden states."""

    shape: tuple[int, ...]  # (..., V)
    hidden: tuple[int, int]  # hidden sizes of the student and of the teacher
    dtype: torch.dtype
    beta: float
    atol: float
    rtol: float
    temperature: float = 1.0
    ignored: float = 0.0
    bias: bool = False
    weights: tuple[float, float] = (0.0, 1.0)  # of the cross-entropy and of the divergence
    scalar: float = 1.0  # multiplies the hidden states
    chunk_rows: int | None = None
    uniform: bool = True  # hidden states and heads are uniform in [0, 1); otherwise normal


class HeadCase(NamedTuple):
    """A case of the cross-entropy from hidden states."""

    rows: int
    vocab: int
    hidden: int
    dtype: torch.dtype
    atol: float
    softcap: float | None
    bias: bool
    shift: bool
    ignored: float
    reduction: str


LIGER = {  # linkedin/Liger-Kernel, all under test/
    "transformers/test_jsd.py": [
        Case((2, 4096, 32000), bf16, 0.1, 1e-8, 5e-2),
        Case((2, 4096, 32000), f32, 0.5, 1e-8, 1e-6, upstream=2.0),
        Case((41, 401, 1271), f32, 0.9, 1e-8, 1e-6),
        Case((41, 401, 1271), f16, 0.1, 1e-3, 1e-3),
        Case((1, 4096, 128256), bf16, 0.9, 1e-8, 5e-2),
        Case((3, 423, 32000), f16, 0.5, 1e-3, 1e-3, upstream=2.0),
    ],
    "transformers/test_kl_div.py": [
        Case((1, 4096, 32000), f32, 0.0, 1e-8, 1e-6),
        Case((1, 4096, 128256), bf16, 0.0, 1e-7, 5e-2),
        Case((3, 423, 32000), bf16, 0.0, 1e-8, 5e-2),
    ],
    "ops/test_jsd.py": [
        Case((8, 64), bf16, 1.0, 2e-2, 1e-2),
        Case((32, 256), f32, 0.0, 1e-5, 1e-5),
        Case((64, 4099), f32, 1.0, 1e-5, 1e-5),
        Case((128, 32000), f32, 0.5, 1e-5, 1e-5),
    ],
    "transformers/test_cross_entropy.py": [
        Case((2, 4096, 32000), bf16, None, 1e-8, 5e-2, ignored=0.25),
        Case((3, 423, 32000), f32, None, 1e-8, 1e-6, ignored=0.25, reduction="sum"),
        Case((3, 423, 32000), f32, None, 1e-8, 1e-6, upstream=3.0),
        Case((2, 2, 8), f32, None, 1e-8, 1e-6),
        Case((9, 7, 41), bf16, None, 1e-8, 5e-2),
    ],
}
LIGER_LINEAR = {
    "transformers/test_fused_linear_jsd.py": [
        LinearCase((8, 128, 4096), (512, 1024), f32, 0.5, 1e-5, 5e-4),
        LinearCase((8, 128, 4096), (512, 1024), bf16, 0.1, 5e-3, 5e-2, temperature=2.0, ignored=0.25),
        LinearCase((4, 423, 1423), (83, 167), f32, 0.0, 1e-5, 5e-4, ignored=0.25),
        LinearCase((4, 423, 1423), (83, 167), bf16, 1.0, 5e-3, 5e-2),
        LinearCase((4, 423, 1423), (83, 167), f32, 0.1, 1e-5, 5e-4, temperature=2.0, ignored=1.0),
        LinearCase((2, 2, 8), (4, 8), f32, 0.1, 1e-5, 5e-4, temperature=2.0, ignored=0.25, scalar=0.5),
        LinearCase((9, 7, 41), (20, 41), bf16, 0.5, 5e-3, 5e-2, ignored=0.25, scalar=0.5),
    ],
    "chunked_loss/test_jsd_loss.py": [
        LinearCase((8, 128, 4096), (512, 1024), f32, 0.8, 1e-5, 5e-4, temperature=2.0, bias=True),
        LinearCase((3, 47, 123), (15, 31), f32, 0.5, 1e-5, 5e-4, bias=True, weights=(0.5, 0.5)),
        LinearCase((3, 47, 123), (15, 31), bf16, 0.2, 5e-2, 5e-1, temperature=0.5, weights=(1.0, 0.0)),
        LinearCase((9, 7, 41), (20, 41), bf16, 0.5, 5e-2, 5e-2, temperature=2.0, bias=True, weights=(0.1, 0.9)),
    ],
}
LIGER_UNDERFLOW = [  # test/ops/test_jsd.py: dtype, beta, atol and rtol
    *((f32, beta, 1e-6) for beta in (0.0, 0.001, 0.5, 0.999, 1.0)),
    *((f16, beta, 5e-4) for beta in (0.001, 0.3)),
    *((bf16, beta, 4e-3) for beta in (0.7, 1.0)),
]
TRL = {  # huggingface/trl
    "tests/experimental/test_gkd_trainer.py": [  # compared to 5 decimals
        Case((2, 3, 5), f32, 0.0, 5e-6, 0.0),
        Case((2, 3, 5), f32, 1.0, 5e-6, 0.0, temperature=2.0),
        Case((2, 3, 5), f32, 0.1, 5e-6, 0.0),
    ],
}
TRL_LINEAR = {
    "tests/test_distillation_trainer.py": [
        LinearCase((3, 7, 29), (16, 16), f32, 0.0, 1e-5, 1e-5, ignored=0.29, chunk_rows=4, uniform=False),
        LinearCase((3, 7, 29), (16, 16), f32, 0.5, 1e-5, 1e-5, ignored=0.29, chunk_rows=5, uniform=False),
        LinearCase((3, 7, 29), (16, 16), f32, 1.0, 1e-5, 1e-5, ignored=0.29, chunk_rows=64, uniform=False),
        LinearCase((3, 7, 29), (16, 16), f32, 1.0, 1e-6, 0.0, ignored=1.0, chunk_rows=4, uniform=False),
    ],
}
FAST_LLM = {  # ServiceNow/Fast-LLM
    "tests/layers/test_lm_losses.py": [
        Case((1, 8), f32, 0.0, 1e-6, 1e-5, (1e-8, 1e-5), distance=1 / 3, rms=True),
        Case((1, 500), f32, 1.0, 1e-6, 1e-5, (1e-8, 1e-5), distance=1 / 3, logit_scale=4.0, rms=True),
        Case((1, 500), f32, 0.0, 1e-6, 1e-5, (1e-8, 1e-5), distance=1 / 3, upstream=4.0, rms=True),
        Case((1, 500), f16, 1.0, 1e-6, 1e-4, (1e-7, 1e-4), distance=1 / 3, rms=True),
        Case((1, 1000), f16, 0.0, 1e-6, 1e-4, (1e-7, 1e-4), distance=1 / 3, logit_scale=3.0, upstream=2.0, rms=True),
        Case((1, 500), f32, None, 1e-6, 1e-5, (1e-8, 1e-5), distance=1 / 3, logit_scale=4.0, rms=True),
    ],
    "tests/functional/test_entropy_loss.py": [
        Case((64, 8192), f32, 0.0, 1e-6, 1e-5, (1e-8, 1e-5), distance=1 / 3, rms=True),
        Case((16, 8, 5000), f32, 1.0, 1e-6, 1e-5, (1e-8, 1e-5), distance=1 / 3, ignored=0.5, counts_masked=True, rms=True),
        Case((64, 65536), f32, 0.0, 1e-6, 1e-5, (1e-8, 1e-5), distance=1 / 3, rms=True),
        Case((16, 8, 65537), f32, 1.0, 1e-6, 1e-5, (1e-8, 1e-5), distance=1 / 3, rms=True),
        Case((64, 65537), f32, None, 1e-6, 1e-5, (1e-8, 1e-5), distance=1 / 3, ignored=0.5, counts_masked=True, rms=True),
    ],
    "tests/test_distillation_loss.py": [Case((2, 3, 5), f32, 1.0, 1e-6, 1e-6, ignored=1 / 3)],
}
SPECULATORS = {  # vllm-project/speculators
    "tests/unit/models/test_fused_losses.py": [
        Case((1, 32, 512), f32, 0.0, 1e-4, 1e-3, (1e-3, 1e-2), reduction="none", scale=3.0),
        Case((1, 32, 512), f32, 0.5, 1e-4, 1e-3, (1e-3, 1e-2), reduction="none", scale=3.0),
        Case((1, 64, 512), bf16, 1.0, 1e-4, 1e-3, (1e-3, 1e-2), reduction="none", scale=3.0),
        Case((1, 64, 512), bf16, None, 0.2, 1e-2, (1e-2, 2e-2), reduction="none", scale=3.0),
        Case((1, 3, 151936), f32, 0.0, 1e-4, 1e-3, (1e-3, 1e-2), reduction="none", scale=3.0),
        Case((1, 3, 151936), f32, 1.0, 1e-4, 1e-3, (1e-3, 1e-2), reduction="none", scale=3.0),
        Case((1, 3, 151936), f32, None, 1e-4, 1e-3, (1e-3, 1e-2), reduction="none", scale=3.0),
    ],
    "tests/unit/models/test_metrics.py": [Case((1, 4, 50), f32, 0.5, 1e-5, 1e-5, reduction="none")],
}
CCE = {  # apple/ml-cross-entropy
    "tests/test_cce_loss_forward.py": [
        HeadCase(256, 512, 128, f32, 1e-5, None, False, False, 0.0, "none"),
        HeadCase(252, 507, 123, f16, 1e-3, 20.0, True, False, 0.2, "none"),
    ],
    "tests/test_cce_loss_backward.py": [
        HeadCase(252, 507, 128, f16, 1e-3, 20.0, True, True, 0.2, "mean"),
        HeadCase(252, 507, 123, bf16, 1e-2, None, True, False, 0.2, "sum"),
        HeadCase(256, 512, 128, bf16, 1e-2, 20.0, False, True, 0.0, "none"),
    ],
}
