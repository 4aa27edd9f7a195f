"""A fuzzer of the losses: random cases on every backend, compared with float64 formulas that share no code with the package.

cases.py    a case: all choices of one call, drawn from (seed, index)
tensors.py  the tensors of a case
oracle.py   the right loss, gradients and statistics in float64, with the error that is allowed for each
check.py    runs a case on a backend and compares
known.py    faults that are known and not fixed yet
machine.py  the backends of this machine
cli.py      the command line: `python -m tests.fuzz --cases 100000`
"""
