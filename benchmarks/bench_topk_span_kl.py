"""Measures `fused_topk_span_kl` and `fused_linear_topk_span_kl` against PyTorch and TRL. It needs only PyTorch.

python benchmarks/bench_topk_span_kl.py [--size quick|default] [--device cuda] [--budget SECONDS] [--out FILE]
"""

from __future__ import annotations

import sys

from harness import main

if __name__ == "__main__":
    sys.exit(main(__doc__.splitlines()[0], "topk_span_kl", topk=True))
