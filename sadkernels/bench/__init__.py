"""The benchmark of the span KL: correctness first, then time, memory and bandwidth, against PyTorch and other libraries.

Needs only PyTorch. `sad bench` is its front door, `python benchmarks/bench_span_kl.py` the one without typer and rich.
"""
