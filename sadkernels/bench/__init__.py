"""Benchmark of the span KL losses against PyTorch, Liger-Kernel and TRL: correctness, time, memory and bandwidth.

It needs only PyTorch. `sad bench` and `benchmarks/bench_span_kl.py` run it.
"""
