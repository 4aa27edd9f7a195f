"""Launchers of `csrc/cuda`: they allocate through PyTorch, launch on its current stream and wait for nothing."""
