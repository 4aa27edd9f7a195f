"""The memory of a training run, computed from model configurations alone."""
