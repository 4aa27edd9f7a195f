"""Measures `fused_span_kl` and `fused_linear_span_kl` against PyTorch, Liger-Kernel and TRL. It needs only PyTorch.

    python benchmarks/bench_span_kl.py [--size quick|default|full] [--device cuda] [--budget SECONDS] [--out FILE]

`sad bench` measures the same and prints tables.
"""

from __future__ import annotations

import sys

from harness import main

if __name__ == "__main__":
    sys.exit(main(__doc__.splitlines()[0], "span_kl"))
