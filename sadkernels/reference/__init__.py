"""The definition of every op in plain PyTorch: the ground truth of the tests, on any device."""
