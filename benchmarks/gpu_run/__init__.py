"""Measures the package on a new GPU machine within ten minutes; `benchmarks/run_gpu.sh` starts it.

`stages` is the table of what runs, `runner` runs it, `processes` starts processes with a limit, `machine` prepares and
describes the machine, `wheels` downloads what a machine without a network lacks.
"""
