"""Launchers of `csrc/cuda`. They allocate through PyTorch, launch on its current stream and never synchronize."""
