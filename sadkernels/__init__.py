"""Kernels of structured agent distillation: tensors in, tensors out, one op on several backends.

`sadkernels.ops` holds the public functions; `sad` is what most people import.
"""
