"""Studies: train students with several methods on the same data, evaluate them on the same tasks, and compare."""
