"""The definition of every op in plain PyTorch, on any device. It is the ground truth of the tests.

Each module defines the functions that the other backends implement with the same names and signatures.
"""
