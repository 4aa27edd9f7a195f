"""The `triton` backend: kernels, their launchers, and `tiles.py`, the one table of tile sizes."""
